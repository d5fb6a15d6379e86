"""Findings on training: optimizers, schedules, late QAT and averaging."""

import math
from collections import Counter

import numpy as np

from schemas.audit import Finding, Verdict
from schemas.merge import MergedModel
from schemas.techniques import TECHNIQUES, Technique
from stages.auditing.evidence import Evidence, learned
from stages.auditing.model_findings import count_of, learning_text, names_of, off

_BY_KEY = {technique.key: technique for technique in TECHNIQUES}


def training_findings(evidence: Evidence) -> list[Finding]:
    """Findings on parameters and optimizers, then on optional techniques, then on the time cap."""
    switched = {
        "momentum": _momentum,
        "decay": _decay,
        "document-rows": _document_rows,
        "progressive-context": _progressive_context,
        "row-norm": _row_norm,
        "grad-clip": _grad_clip,
        "warmdown": _warmdown,
        "lr-floor": _lr_floor,
        "qat": _qat,
        "swa": _averaging,
    }
    spec = evidence.spec
    findings = [
        make(evidence, _BY_KEY[key]) if _BY_KEY[key].is_on(spec) else off(_BY_KEY[key])
        for key, make in switched.items()
    ]
    return [_parameters(evidence), *_optimizers(evidence), *findings, _cap(evidence), _text_in_time(evidence)]


def _parameters(evidence: Evidence) -> Finding:
    """A gradient must have moved every tensor, the value embedding included."""
    trained = evidence.results.trained
    still = [change for change in trained.changes if not learned(change)]
    owners = {name: group for group in trained.groups for name in group.parameters}
    by_group: dict[str, list[str]] = {}
    for change in still:
        group = owners[change.name]
        why = (
            f"in no optimizer, group {group.name}"
            if group.optimizer == "none"
            else f"in {group.optimizer}, but without a gradient"
        )
        by_group.setdefault(why, []).append(change.name)
    count = sum(math.prod(change.shape) for change in trained.changes if learned(change))
    text = (
        f"{len(trained.changes) - len(still)} of {len(trained.changes)} tensors learned, "
        f"{count:,} of {trained.num_parameters:,} parameters"
    )
    text += "".join(f"; {why}: {names_of(names)}" for why, names in by_group.items())
    verdict = _graded(any_effect=len(still) < len(trained.changes), whole_effect=not still)
    figures = {
        "tensors": float(len(trained.changes)),
        "tensors_without_learning": float(len(still)),
        "parameters_learned": float(count),
    }
    return Finding(
        key="parameters", title="every parameter learns", verdict=verdict, evidence=text, figures=figures
    )


def _graded(*, any_effect: bool, whole_effect: bool) -> Verdict:
    if not any_effect:
        return "no effect"
    return "took effect" if whole_effect else "in part"


def _optimizers(evidence: Evidence) -> list[Finding]:
    """Each optimizer's tensors, as it held them. `_parameters` warns of one that did not learn."""
    findings = []
    for key, title in (("muon", "Muon, for matrices"), ("adamw", "AdamW, for embeddings and scalars")):
        groups = [group for group in evidence.results.trained.groups if group.optimizer == key]
        changes = [evidence.changes[name] for group in groups for name in group.parameters]
        rates = ", ".join(f"{group.name} at {group.lr:g}" for group in groups)
        verdict: Verdict = "took effect" if any(map(learned, changes)) else "no effect"
        text = f"{learning_text(changes)}; peak learning rates: {rates}" if groups else "holds no tensor"
        findings.append(
            Finding(
                key=key, title=title, verdict=verdict, evidence=text, figures={"tensors": float(len(changes))}
            )
        )
    return findings


def _momentum(evidence: Evidence, technique: Technique) -> Finding:
    momentum = evidence.metrics["muon_momentum"]
    rising = int((np.diff(momentum) > 0).sum())
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if rising else "no effect",
        evidence=(
            f"{momentum[0]:.3f} at the first step, {momentum[-1]:.3f} at the last; rose over {rising} steps"
        ),
        figures={"first": float(momentum[0]), "last": float(momentum[-1]), "rising_steps": float(rising)},
    )


def _decay(evidence: Evidence, technique: Technique) -> Finding:
    """What decay alone left of a weight, from the learning rate of every step and the optimizer's decay."""
    groups = evidence.results.trained.groups
    applied = [group for group in groups if group.decay_factor < 1]
    spared = [group for group in groups if group.decay_factor >= 1]
    optimizer = evidence.spec.train.optimizer
    own = {
        "matrices": optimizer.muon_weight_decay,
        "embeddings": optimizer.embedding_weight_decay,
        "scalars": optimizer.scalar_weight_decay,
    }
    asked = {name: optimizer.adam_weight_decay if decay is None else decay for name, decay in own.items()}
    missed = [group for group in spared if asked.get(group.name)]
    parts = [
        f"{group.name} × {group.decay_factor:.3f} over the run ({group.optimizer} {group.weight_decay:g})"
        for group in applied
    ]
    parts += [f"none on {', '.join(group.name for group in spared)}"] if spared else []
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict=_graded(any_effect=bool(applied), whole_effect=not missed),
        evidence="; ".join(parts),
        figures={f"{group.name}_decay_factor": group.decay_factor for group in groups},
    )


def _document_rows(evidence: Evidence, technique: Technique) -> Finding:
    rows = evidence.results.trained.document_rows
    at_start, repeated = (rows.at_start, rows.repeated) if rows else (0.0, 0.0)
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if at_start else "no effect",
        evidence=(
            f"{at_start:.1%} of the rows begin with a document; {repeated:.2%} of the inputs are there twice"
        ),
        figures={"rows_at_document_start": at_start, "repeated_inputs": repeated},
    )


def _progressive_context(evidence: Evidence, technique: Technique) -> Finding:
    """Steps with each context, as the trainer recorded what it gave the model."""
    data, steps = evidence.spec.train.data, Counter(evidence.metrics["context"].tolist())
    wanted = (*data.context_lengths, data.sequence_length)
    reached = sum(bool(steps[length]) for length in wanted)
    parts = [f"{length:,} tokens for {count_of(steps[length], 'step')}" for length in wanted]
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict=_graded(any_effect=reached > 1, whole_effect=reached == len(wanted)),
        evidence=", then ".join(parts),
        figures={f"steps_of_{length}_tokens": float(steps[length]) for length in wanted},
    )


def _row_norm(evidence: Evidence, technique: Technique) -> Finding:
    """Row normalisation does something where the rows of a momentum differ in norm."""
    spreads = [
        group.row_norm_spread
        for group in evidence.results.trained.groups
        if group.row_norm_spread is not None
    ]
    spread = max(spreads, default=0.0)
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if spread > 0 else "no effect",
        evidence=(
            f"row norms of the momentum differ by {spread:.0%} (std over mean) at the last step"
            if spreads
            else "Muon holds no matrix"
        ),
        figures={"row_norm_spread": spread},
    )


def _lr_floor(evidence: Evidence, technique: Technique) -> Finding:
    floor, scales = evidence.spec.train.schedule.min_lr_scale, evidence.metrics["lr_scale"]
    held = int((scales <= floor).sum())
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if held else "no effect",
        evidence=f"{count_of(held, 'step')} at the floor of {floor:g}; lowest scale {scales.min():.4f}",
        figures={"steps_at_floor": float(held), "lowest_scale": float(scales.min())},
    )


def _grad_clip(evidence: Evidence, technique: Technique) -> Finding:
    norms, limit = evidence.metrics["grad_norm"], evidence.spec.train.optimizer.grad_clip_norm
    share = float((norms > limit).mean())
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if share else "no effect",
        evidence=(
            f"{share:.0%} of the steps had a gradient above {limit:g}; median norm "
            f"{np.median(norms):.2f}, largest {norms.max():.2f}"
        ),
        figures={"clipped_share": share, "median_norm": float(np.median(norms))},
    )


def _warmdown(evidence: Evidence, technique: Technique) -> Finding:
    scales = evidence.metrics["lr_scale"]
    falling = int((scales < scales.max()).sum())
    parts = [
        (
            f"scale {scales.max():.3f} at most, {scales[-1]:.4f} at the last step; falling for "
            f"{falling / len(scales):.0%} of the steps"
        )
    ]
    full_rate = bool(scales.max() >= 0.999)
    parts += [] if full_rate else ["the learning rate never reached its maximum"]
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict=_graded(any_effect=falling > 0, whole_effect=full_rate),
        evidence="; ".join(parts),
        figures={"largest_scale": float(scales.max()), "last_scale": float(scales[-1])},
    )


def _qat(evidence: Evidence, technique: Technique) -> Finding:
    """Steps with QAT, and how many of the averaged snapshots came after the first of them."""
    results = evidence.results
    qat_on, steps = evidence.metrics["qat_on"].astype(bool), evidence.metrics["step"]
    under = [int(qat_on[steps <= step].sum()) for step in results.merged.steps]
    saw_it = results.merged.num_with_qat
    bits = {change.name: change.qat_bits for change in results.trained.changes if change.qat_bits}
    formats = {tensor.name: tensor.format for tensor in results.packed.tensors}
    other_grid = [name for name, trained_bits in bits.items() if formats.get(name) != f"int{trained_bits}"]
    mismatch = _other_quantizer(evidence) if qat_on.any() else ""
    if not qat_on.any():
        text = "no step had QAT: the learning-rate scale never fell so far"
    else:
        first = int(steps[qat_on.argmax()])
        text = f"{count_of(int(qat_on.sum()), 'step')} from step {first} on, {len(bits)} tensors"
        text += _averaged_under_qat(results.merged, under)
    if other_grid:
        text += (
            f"; {len(other_grid)} tensors are stored on another grid than they were trained on: "
            f"{names_of(other_grid)}"
        )
    text += mismatch
    reached = bool(saw_it and len(other_grid) < len(bits))
    whole = saw_it == len(results.merged.steps) and not other_grid and not mismatch
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict=_graded(any_effect=reached, whole_effect=whole),
        evidence=text,
        figures={
            "qat_steps": float(qat_on.sum()),
            "averaged_snapshots": float(len(results.merged.steps)),
            "averaged_snapshots_under_qat": float(saw_it),
            "tensors_on_another_grid": float(len(other_grid)),
        },
    )


def _averaged_under_qat(merged: MergedModel, under: list[int]) -> str:
    """How much of QAT the merged model holds. `under`: steps with QAT before each averaged snapshot."""
    if merged.method == "ema_of_steps" and merged.num_with_qat:
        return "; the mean of the steps holds them"
    text = f"; {merged.num_with_qat} of {len(merged.steps)} averaged snapshots had it"
    if merged.num_with_qat:
        return f"{text}, after {min(filter(None, under), default=0)} to {max(under)} of its steps"
    return f"{text}: the last one is of step {max(merged.steps)}, so the package has nothing of it"


def _other_quantizer(evidence: Evidence) -> str:
    """How training's grids differ from the quantizer's by more than their bits; empty if they do not."""
    spec, grid = evidence.spec, evidence.results.trained.qat_grid
    method = evidence.results.packed.method
    if grid != spec.quantize.qat_grid:
        return f"; trained on the grid of {grid}, but {method} quantizes to another grid"
    if set(spec.train.qat.clip_candidates) != set(spec.quantize.qat_clip_candidates):
        return "; trained with other clip_candidates than those of quantization"
    return ""


def _averaging(evidence: Evidence, technique: Technique) -> Finding:
    merged = evidence.results.merged
    count, gain = len(merged.steps), merged.score.bpb - merged.last.bpb
    of_steps = merged.method == "ema_of_steps"
    if of_steps:
        text = f"exponential mean of {count_of(merged.steps[-1], 'step')}"
    else:
        text = f"{merged.method} of {count_of(count, 'snapshot')}"
        text += (
            f", steps {min(merged.steps)} to {max(merged.steps)}, lr scales {max(merged.lr_scales):.3f} to "
            f"{min(merged.lr_scales):.3f}"
        )
    text += f"; {merged.distance_from_last:.2%} (rms) from the last iterate, {gain:+.5f} bpb against it"
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if (of_steps or count > 1) and merged.distance_from_last > 0 else "no effect",
        evidence=text,
        figures={
            "snapshots": float(count),
            "distance_from_last": merged.distance_from_last,
            "bpb_against_last": gain,
        },
    )


def _cap(evidence: Evidence) -> Finding:
    """Training may finish the step in which the time ran out, and no later one."""
    trained, cap = evidence.results.trained, evidence.spec.train.schedule.step_seconds
    if cap is None:
        return Finding(key="cap", title="time cap kept", verdict="off", evidence="no cap was set", figures={})
    seconds = trained.timings.training_seconds
    times = evidence.metrics["seconds"]
    before_last = float(times[-2]) if len(times) > 1 else 0.0
    return Finding(
        key="cap",
        title="time cap kept",
        verdict="holds" if seconds <= cap or before_last < cap else "broken",
        evidence=f"{seconds:.3f} s of training, the cap is {cap:g} s"
        + (f": over by {seconds - cap:.3f} s, which its last step took" if seconds > cap else ""),
        figures={"training_seconds": seconds, "cap_seconds": cap},
    )


def _text_in_time(evidence: Evidence) -> Finding:
    """Whoever reads training text learns from it: the contest counts a calibration as training."""
    schedule, read = evidence.spec.train.schedule, evidence.results.packed.text_seconds
    key, title = "text-in-time", "training text read within the cap"
    if schedule.max_seconds is None or read is None:
        why = "no cap was set" if schedule.max_seconds is None else "only training reads text"
        return Finding(key=key, title=title, verdict="off", evidence=why, figures={})
    trained = evidence.results.trained.timings.training_seconds
    text = (
        f"{trained:.1f} s of training and {read:.1f} s from the first calibration text to the last code; "
        f"the cap is {schedule.max_seconds:g} s"
    )
    within = trained + read <= schedule.max_seconds
    if not schedule.reserve_seconds:
        text += "; train.schedule.reserve_seconds would keep a part of it for calibration"
    return Finding(
        key=key,
        title=title,
        verdict=("holds" if within else "broken") if schedule.reserve_seconds else "off",
        evidence=text,
        figures={"training_seconds": trained, "text_seconds": read, "cap_seconds": schedule.max_seconds},
    )
