"""Findings on the model's techniques: the packaged model is scored without each, and its parameters must have
learned.
"""

from collections.abc import Callable

import torch

from schemas.audit import Finding, Verdict
from schemas.techniques import TECHNIQUES, Technique
from schemas.train import ParameterChange
from stages.auditing.evidence import Evidence, learned
from stages.core.schedule import Clock, loops_on_at

FLOAT_NOISE = 1e-6
"""Relative change of the logits below which two float32 passes count as the same."""

_MAX_NAMES = 6

Detail = Callable[[Evidence], tuple[str, dict[str, float]]]


def model_findings(evidence: Evidence) -> list[Finding]:
    """A finding for each technique that changes the model's settings, on or off."""
    return [
        _finding(technique, evidence) if technique.key in evidence.shipped.effects else off(technique)
        for technique in TECHNIQUES
        if _is_part_of_the_model(technique, evidence)
    ]


def off(technique: Technique) -> Finding:
    return Finding(
        key=technique.key, title=technique.title, verdict="off", evidence="not asked for", figures={}
    )


def learning_text(changes: list[ParameterChange]) -> str:
    """`all 3 of its tensors learned`, or those that did not; with the size of the change if few."""
    still = [change.name for change in changes if not learned(change)]
    if still:
        return f"{len(still)} of its {count_of(len(changes), 'tensor')} never learned: {names_of(still)}"
    sizes = (
        ", ".join(_size(change) for change in changes)
        if len(changes) <= 3
        else f"median {_median_share(changes):.0%} of their size"
    )
    tensors = f"all {len(changes)} of its tensors" if len(changes) > 1 else "its tensor"
    return f"{tensors} learned ({sizes})"


def names_of(names: list[str]) -> str:
    more = f", and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def count_of(count: int, noun: str, plural: str = "") -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def _is_part_of_the_model(technique: Technique, evidence: Evidence) -> bool:
    spec = evidence.spec
    return all(setting.startswith("train.model.") for setting in technique.off(spec))


def _finding(technique: Technique, evidence: Evidence) -> Finding:
    effect = evidence.shipped.effects[technique.key]
    changes = [evidence.changes[name] for name in effect.parameters if name in evidence.changes]
    detail, figures = _DETAILS.get(technique.key, _nothing_more)(evidence)
    changed = effect.logit_change > FLOAT_NOISE
    difference = f"{effect.bpb_change:+.4f} bpb" if changed else "no output changes"
    parts = [
        detail,
        learning_text(changes) if changes else "",
        f"taken out of the packaged model: {difference}",
    ]
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict=_verdict(technique.key, evidence, changes),
        evidence="; ".join(part for part in parts if part),
        figures={"without_it_bpb": effect.bpb_change, "logit_change_share": effect.logit_change, **figures},
    )


def _verdict(key: str, evidence: Evidence, changes: list[ParameterChange]) -> Verdict:
    unchanged = evidence.shipped.effects[key].logit_change <= FLOAT_NOISE
    count = sum(map(learned, changes))
    own = evidence.shipped.own_value
    leaves_it_in = key == "xsa" and own is not None and own.after > own.before / 2
    never_trained = key == "loops" and not looped_steps(evidence)
    if unchanged or (changes and not count) or leaves_it_in or never_trained:
        return "no effect"
    return "in part" if count < len(changes) else "took effect"


def looped_steps(evidence: Evidence) -> int:
    """Training steps that repeated the looped layers, by the recorded clock before each."""
    steps, seconds = evidence.metrics["step"], evidence.metrics["seconds"]
    clocks = [Clock(0, 0.0), *(Clock(int(a), float(b)) for a, b in zip(steps, seconds, strict=True))]
    return sum(loops_on_at(clock, evidence.spec.train.schedule) for clock in clocks[:-1])


def _nothing_more(evidence: Evidence) -> tuple[str, dict[str, float]]:
    return "", {}


def _xsa(evidence: Evidence) -> tuple[str, dict[str, float]]:
    own = evidence.shipped.own_value
    if own is None:
        return "no layer excludes", {}
    text = (
        f"{count_of(own.num_layers, 'layer')}; {own.before:.2%} of a token's output lay along "
        f"its own value before, {own.after:.2%} after"
    )
    return text, {"self_projection_before": own.before, "self_projection_after": own.after}


def _rope(evidence: Evidence) -> tuple[str, dict[str, float]]:
    rotated, dims = evidence.shipped.rotated_dims, evidence.spec.train.model.head_dim
    return f"{rotated} of {dims} dims of a head rotate ({rotated / dims:.0%})", {
        "rotated_share": rotated / dims
    }


def _ln_scale(evidence: Evidence) -> tuple[str, dict[str, float]]:
    scales = evidence.shipped.norm_scales
    return f"the norm is scaled by {scales[0]:.3g} in the first layer, {scales[-1]:.3g} in the last", {
        "last_layer_scale": scales[-1]
    }


def _smear(evidence: Evidence) -> tuple[str, dict[str, float]]:
    if evidence.spec.train.model.smear_form == "by_input":
        strength = float(evidence.shipped.state["smear.strength"])
        return f"strength {strength:+.3f} (0 at the start)", {"strength": strength}
    gates = torch.sigmoid(evidence.shipped.state["smear.gate"])
    low, mean, high = float(gates.min()), float(gates.mean()), float(gates.max())
    return f"gates {low:.2f} to {high:.2f}, mean {mean:.2f} (0.5 at the start)", {"mean_gate": mean}


def _smear_bos(evidence: Evidence) -> tuple[str, dict[str, float]]:
    starts = evidence.shipped.windows.num_document_starts
    return f"{count_of(starts, 'document start')} among the tokens", {"document_starts": float(starts)}


def _softcap(evidence: Evidence) -> tuple[str, dict[str, float]]:
    largest, cap = evidence.shipped.largest_raw_logit, evidence.spec.train.model.logit_softcap
    return f"raw logits reach ±{largest:.1f}, the cap is {cap:g}", {"largest_raw_logit": largest}


def _unet(evidence: Evidence) -> tuple[str, dict[str, float]]:
    mean = float(evidence.shipped.state["skip_weights"].abs().mean())
    return f"mean |weight| of the skips {mean:.2f} (1 at the start)", {"mean_skip_weight": mean}


def _skip_gates(evidence: Evidence) -> tuple[str, dict[str, float]]:
    gates = torch.sigmoid(evidence.shipped.state["skip_gates"])
    low, mean, high = float(gates.min()), float(gates.mean()), float(gates.max())
    text = f"the stream's share is {low:.2f} to {high:.2f}, mean {mean:.2f} (0.5 at the start)"
    return text, {"mean_share_of_stream": mean}


def _loops(evidence: Evidence) -> tuple[str, dict[str, float]]:
    model, looped, steps = evidence.spec.train.model, looped_steps(evidence), len(evidence.metrics["step"])
    first, last, passes = model.loop_layers[0], model.loop_layers[-1], len(model.layer_order())
    layers = f"layer {first} runs" if first == last else f"layers {first} to {last} run"
    text = (
        f"{layers} {model.loop_passes} times, {passes} passes through a layer in all; "
        f"on for {looped} of {count_of(steps, 'training step')}"
    )
    return text, {"passes": float(passes), "looped_steps": float(looped)}


def _leaky(evidence: Evidence) -> tuple[str, dict[str, float]]:
    slope = evidence.spec.train.model.leaky_slope
    return f"slope {slope:g} below zero", {"slope": slope}


def _parallel(evidence: Evidence) -> tuple[str, dict[str, float]]:
    model = evidence.spec.train.model
    count = model.num_layers - model.parallel_first_layer
    text = f"{count_of(count, 'layer')} from {model.parallel_first_layer} on"
    return f"{text}, {model.parallel_residuals.replace('_', ' ')}", {"layers": float(count)}


def _head_gate(evidence: Evidence) -> tuple[str, dict[str, float]]:
    weights = [value for name, value in evidence.shipped.state.items() if name.endswith("head_gate")]
    largest = max(float(weight.abs().max()) for weight in weights)
    return f"largest weight {largest:.2f} (0 at the start, gates 0.5)", {"largest_weight": largest}


def _untied(evidence: Evidence) -> tuple[str, dict[str, float]]:
    state = evidence.shipped.state
    alike = float(torch.cosine_similarity(state["head.weight"], state["tok_emb.weight"], dim=1).mean())
    return f"mean cosine of a token's rows in head and embedding {alike:.2f}", {"mean_cosine": alike}


_DETAILS: dict[str, Detail] = {
    "skip-gates": _skip_gates,
    "loops": _loops,
    "leaky": _leaky,
    "parallel": _parallel,
    "head-gate": _head_gate,
    "untied": _untied,
    "xsa": _xsa,
    "rope": _rope,
    "ln-scale": _ln_scale,
    "smear": _smear,
    "smear-bos": _smear_bos,
    "softcap": _softcap,
    "unet": _unet,
}
"""What is said about a technique beside what every one gets."""


def _size(change: ParameterChange) -> str:
    if change.initial_rms:
        return f"{change.name} by {change.learned_rms / change.initial_rms:.0%}"
    return f"{change.name} from 0 to rms {change.final_rms:.2g}"


def _median_share(changes: list[ParameterChange]) -> float:
    shares = sorted(
        change.learned_rms / change.initial_rms if change.initial_rms else 1.0 for change in changes
    )
    return shares[len(shares) // 2]
