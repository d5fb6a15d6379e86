"""Rules about the scores of held-out text, and the first that a training has broken."""

from schemas.held_out import CurvePoint, HeldOut


def broken_rule(held_out: HeldOut, points: tuple[CurvePoint, ...]) -> str | None:
    """Why the run ends, in words; None while every rule holds. `points`: all scores so far, in order."""
    for rule in held_out.rules:
        at = next((point for point in points if point.share >= rule.at - 1e-9), None)
        if at is not None and (value := getattr(at, rule.figure)) > rule.limit:
            what = f"{rule.figure} is {value:.4f}, and the rule is '{rule}'"
            return f"at step {at.step} ({at.share:.0%}): {what}"
    if (behind := held_out.behind) is None:
        return None
    for point in points:
        theirs = _at_share(behind.curve, point.share)
        if theirs is not None and point.val_bpb > theirs + behind.margin:
            return (
                f"at step {point.step} ({point.share:.0%}): val_bpb is {point.val_bpb:.4f}, more than "
                f"{behind.margin:g} above the {theirs:.4f} of {behind.run} there"
            )
    return None


def _at_share(curve: tuple[CurvePoint, ...], share: float) -> float | None:
    """val_bpb of a curve at a share, between two points on their line; None where the curve has none."""
    for before, after in zip(curve, curve[1:], strict=False):
        if before.share - 1e-9 <= share <= after.share + 1e-9:
            way = (share - before.share) / max(after.share - before.share, 1e-12)
            return before.val_bpb + min(1.0, max(0.0, way)) * (after.val_bpb - before.val_bpb)
    return curve[0].val_bpb if len(curve) == 1 and abs(curve[0].share - share) < 1e-9 else None
