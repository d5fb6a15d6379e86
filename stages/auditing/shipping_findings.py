"""Findings on the package and its scores: quantizer, bytes, targets."""

from schemas.audit import Finding
from schemas.evaluate import Score, sliding_of
from schemas.pipeline import PipelineSpec
from schemas.quantize import PackedModel
from schemas.quantizer_settings import CalibratedSettings, Ecsq, FittingSettings
from schemas.techniques import TECHNIQUES, Technique
from stages.auditing.evidence import Evidence
from stages.auditing.model_findings import count_of, names_of, off

_BY_KEY = {technique.key: technique for technique in TECHNIQUES}

_SAME_ERROR = 1e-5
"""Relative difference of two rms errors that were summed in another order."""


def shipping_findings(evidence: Evidence) -> list[Finding]:
    """The quantizer, windows and test-time training, then the rules."""
    spec = evidence.spec
    switched = {
        "quantizer": _quantizer,
        "document-windows": _document_windows,
        "sliding": _sliding,
        "attention-window": _sliding,
        "test-time-training": _test_time_training,
    }
    findings = [
        make(evidence, _BY_KEY[key]) if _BY_KEY[key].is_on(spec) else off(_BY_KEY[key])
        for key, make in switched.items()
    ]
    return [
        *findings,
        _blob(evidence),
        _targets(evidence),
        _bytes(evidence),
        _limit(evidence),
        _fit(evidence),
    ]


def _quantizer(evidence: Evidence, technique: Technique) -> Finding:
    """Compare with plain rounding under the same rules, which the quantize stage always computes too."""
    packed, settings = evidence.results.packed, evidence.spec.quantize
    if isinstance(settings, Ecsq):
        return _coded(evidence, technique, settings)
    rows = [tensor for tensor in packed.tensors if tensor.format.startswith("int")]
    differ = [row for row in rows if row.rms_error != row.rms_error_round_to_nearest]
    clipped = sum(clip.num_rows for row in rows for clip in row.clips if clip.clip_ratio != 1)
    searched = sum(clip.num_rows for row in rows for clip in row.clips)
    saved = packed.squared_error_saved
    saved_bytes = packed.blob_bytes_round_to_nearest - packed.blob_bytes
    chosen = f"{clipped:,} of {searched:,} rows took a clip ratio other than 1; " if searched else ""
    if isinstance(settings, CalibratedSettings):
        chosen = (
            f"error compensation on training text changed {len(differ)} of "
            f"{count_of(len(rows), 'matrix', 'matrices')}; "
        )
    text = (
        f"{packed.method}: {chosen}squared error {-saved:+.2%}, blob {-saved_bytes:+,} bytes "
        "against plain rounding"
    )
    if not differ:
        text = f"{packed.method}: {chosen}every tensor equals that of plain rounding"
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if differ else "no effect",
        evidence=text + _moved(packed),
        figures={
            "rows": float(searched),
            "rows_clipped": float(clipped),
            "squared_error_saved_share": saved,
            "saved_bytes": float(saved_bytes),
            **_divergence(packed),
        },
    )


def _coded(evidence: Evidence, technique: Technique, settings: Ecsq) -> Finding:
    """Bits of the coded matrices, as in their section of the blob, beside the entropy of their codes; the
    loss spent.
    """
    packed = evidence.results.packed
    coded = [tensor for tensor in packed.tensors if tensor.format == "coded"]
    weights = sum(tensor.num_elements for tensor in coded)
    others = sum(tensor.stored_bytes for tensor in packed.tensors if tensor.format != "coded")
    section_bytes = packed.stored_bytes - packed.header_bytes - others
    bits = 8 * section_bytes / weights if weights else 0.0
    entropy = sum(tensor.num_elements * tensor.entropy_bits for tensor in coded) / weights if weights else 0.0
    saved_bytes = packed.blob_bytes_round_to_nearest - packed.blob_bytes
    multiplier = packed.step_multiplier or 0.0
    estimate = weights * multiplier**2 / 24
    text = "ecsq: the rules keep every tensor in floating point, so nothing is coded"
    if coded:
        fitted = settings.limit_bytes is not None
        asked = "by the limit" if fitted else f"asked for {settings.loss_budget_nats:g}"
        text = (
            f"ecsq: {count_of(len(coded), 'matrix', 'matrices')} coded in {bits:.2f} bits a "
            "weight, steps and tables included"
        )
        text += (
            f" (order-0 entropy of the codes {entropy:.2f}); steps × {multiplier:.3g}, "
            f"{estimate:.3g} nats to spend ({asked})"
        )
        text += f"{_moved(packed)}; blob {-saved_bytes:+,} bytes against plain rounding"
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if coded else "no effect",
        evidence=text,
        figures={
            "coded_matrices": float(len(coded)),
            "bits_per_weight": bits,
            "entropy_bits_per_weight": entropy,
            "step_multiplier": multiplier,
            "estimated_loss_nats": estimate,
            "saved_bytes": float(saved_bytes),
            **_divergence(packed),
        },
    )


def _moved(packed: PackedModel) -> str:
    return (
        ""
        if packed.divergence_nats is None
        else f"; the predictions change by {packed.divergence_nats:.3g} nats a token of training text"
    )


def _divergence(packed: PackedModel) -> dict[str, float]:
    return {} if packed.divergence_nats is None else {"divergence_nats": packed.divergence_nats}


def _sliding(evidence: Evidence, technique: Technique) -> Finding:
    scores = evidence.results.evaluation
    gain = scores.sliding.bpb - scores.non_overlapping.bpb if scores.sliding else 0.0
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if gain else "no effect",
        evidence=f"{sliding_of(evidence.spec.evaluate.scoring)}: {gain:+.5f} bpb against windows "
        f"that do not overlap{_beyond_training(evidence.spec)}",
        figures={"bpb_against_non_overlapping": gain},
    )


def _beyond_training(spec: PipelineSpec) -> str:
    """Of an attention window that is longer than a training sequence: that it is."""
    reach, trained = spec.evaluate.scoring.attention_window, spec.train.data.sequence_length
    return f"; training had only {trained:,} tokens of context" if reach > trained else ""


def _document_windows(evidence: Evidence, technique: Technique) -> Finding:
    """Where a document begins inside the text, windows over the stream would have crossed it."""
    starts = evidence.results.evaluation.non_overlapping.num_bos_targets
    astray = [name for name, score in _scores(evidence).items() if score.windows != "documents"]
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="no effect" if astray or not starts else "took effect",
        evidence=(
            f"windows over the stream of tokens: {names_of(astray)}"
            if astray
            else f"no window crosses the {starts:,} document starts inside the validation text; not "
            "comparable with figures over the stream"
        ),
        figures={"inner_document_starts": float(starts)},
    )


def _test_time_training(evidence: Evidence, technique: Technique) -> Finding:
    """The score beside that of the same windows without it, and what it took."""
    settings, learned = (
        evidence.spec.evaluate.test_time_training,
        evidence.results.evaluation.test_time_training,
    )
    if learned is None:
        text, gain = "the packaged program left no score with it", None
    elif (gain := learned.gain_bpb) is None:
        text = (
            f"no score: its clock of {settings.max_seconds:g} s ran out at {learned.done_share:.1%} of the "
            "targets; give it more with evaluate.test_time_training.max_seconds"
        )
    else:
        text = (
            f"{gain:+.5f} bpb against the same windows without it: "
            f"{count_of(learned.num_steps, 'step', 'steps')} on "
            f"{count_of(learned.num_documents, 'document', 'documents')} in {learned.seconds:.1f} of "
            f"{settings.max_seconds:g} s"
        )
    return Finding(
        key=technique.key,
        title=technique.title,
        verdict="took effect" if gain else "no effect",
        evidence=text,
        figures={}
        if gain is None or learned is None
        else {
            "bpb_against_without": gain,
            "steps": float(learned.num_steps),
            "seconds": learned.seconds,
        },
    )


def _blob(evidence: Evidence) -> Finding:
    """Compare the decoded blob with the merged weights and the error that quantization reported."""
    reported = {tensor.name: tensor.rms_error for tensor in evidence.results.packed.tensors}
    errors = evidence.shipped.errors
    wrong = [
        name
        for name in sorted(set(reported) | set(errors))
        if not _same(reported.get(name), errors.get(name))
    ]
    count = sum(tensor.numel() for tensor in evidence.shipped.state.values())
    trained = evidence.results.trained.num_parameters
    holds = not wrong and count == trained
    text = f"{count:,} parameters decoded of {trained:,} trained"
    text += (
        f"; the error differs from the reported one in {names_of(wrong)}"
        if wrong
        else "; each tensor as far from the merged one as reported"
    )
    return Finding(
        key="blob",
        title="the blob holds the merged model",
        verdict="holds" if holds else "broken",
        evidence=text,
        figures={"parameters": float(count), "tensors_off": float(len(wrong))},
    )


def _targets(evidence: Evidence) -> Finding:
    """Compare targets, bytes and BOS of every score with a count over the shards without windows."""
    counted = evidence.counted
    scores = _scores(evidence)
    expected = (counted.num_targets, counted.num_bytes, counted.num_bos_targets)
    wrong = [
        name
        for name, score in scores.items()
        if (score.num_targets, score.num_bytes, score.num_bos_targets) != expected
    ]
    text = (
        f"{counted.num_targets:,} targets that stand for {counted.num_bytes:,} bytes, in each of "
        f"{len(scores)} scores"
    )
    if wrong:
        seen = ", ".join(
            f"{name}: {scores[name].num_targets:,} targets, {scores[name].num_bytes:,} bytes"
            for name in wrong
        )
        text = f"the shards have {counted.num_targets:,} targets, {counted.num_bytes:,} bytes; {seen}"
    text_bytes = evidence.results.tokenized.val.normalized_utf8_bytes
    fits = text_bytes in (None, counted.num_bytes)
    text += (
        "; the bytes of the text are unknown"
        if text_bytes is None
        else f"; the normalised text has {text_bytes:,}"
    )
    return Finding(
        key="targets",
        title="every validation target scored once",
        verdict="broken" if wrong or not fits else "holds",
        evidence=text,
        figures={"targets": float(counted.num_targets), "bytes": float(counted.num_bytes)},
    )


def _bytes(evidence: Evidence) -> Finding:
    """The sizes that different stages counted must agree with one another and with the files."""
    size, packed = evidence.results.size, evidence.results.packed
    groups = sum(part.num_bytes for part in size.tensor_groups)
    files = sum(part.num_bytes for part in size.files)
    agree = {
        "the files and the total": files == size.total_bytes == size.code_bytes + size.model_bytes,
        "the blob's parts and the blob": groups == size.model_bytes,
        "the blob and what quantization wrote": size.model_bytes
        == packed.blob_bytes
        == evidence.results.package.blob.num_bytes,
        "limit, total and margin": size.limit_bytes - size.total_bytes == size.margin_bytes,
    }
    wrong = [what for what, same in agree.items() if not same]
    per_weight = packed.bits_per_parameter
    text = (
        f"{size.total_bytes:,} = {size.model_bytes:,} model + {size.code_bytes:,} code; "
        f"{per_weight:.2f} bits a parameter"
    )
    return Finding(
        key="bytes",
        title="byte accounting",
        verdict="broken" if wrong else "holds",
        evidence=text + (f"; do not agree: {', '.join(wrong)}" if wrong else ""),
        figures={"total_bytes": float(size.total_bytes), "bits_per_parameter": per_weight},
    )


def _limit(evidence: Evidence) -> Finding:
    size = evidence.results.size
    side = "under" if size.fits else "OVER"
    return Finding(
        key="limit",
        title="size limit kept",
        verdict="holds" if size.fits else "broken",
        evidence=f"{abs(size.margin_bytes):,} bytes {side} {size.limit_bytes:,}",
        figures={"margin_bytes": float(size.margin_bytes)},
    )


def _fit(evidence: Evidence) -> Finding:
    """The package is the one that the search measured, and it is within the requested limit."""
    packed, size, settings = evidence.results.packed, evidence.results.size, evidence.spec.quantize
    if not isinstance(settings, FittingSettings) or settings.fit.limit_bytes is None:
        return Finding(
            key="fit",
            title="fit to a byte limit",
            verdict="off",
            evidence="no limit to fit was set",
            figures={},
        )
    fit = settings.fit
    assert fit.limit_bytes is not None
    code_bytes = size.code_bytes if fit.code_bytes is None else fit.code_bytes
    fitted_bytes = packed.blob_bytes + code_bytes
    measured = {attempt.step_multiplier: attempt.package_bytes for attempt in packed.fit_tries}
    meant = measured.get(packed.step_multiplier or 0.0)
    distance = 1 - fitted_bytes / fit.limit_bytes
    text = (
        f"{fitted_bytes:,} bytes of {fit.limit_bytes:,}, {distance:.3%} below, after "
        f"{count_of(len(packed.fit_tries), 'try', 'tries')}"
    )
    if fitted_bytes > fit.limit_bytes:
        text = f"{fitted_bytes:,} bytes, OVER {fit.limit_bytes:,}"
    elif distance > fit.tolerance_fraction:
        none_over = all(attempt.package_bytes <= fit.limit_bytes for attempt in packed.fit_tries)
        why = "finer quantization steps give no more bytes" if none_over else "no tries are left"
        text += f", more than the tolerance of {fit.tolerance_fraction:.3%}: {why}"
    if meant != fitted_bytes:
        text += f"; the search measured {meant or 0:,} bytes"
    return Finding(
        key="fit",
        title="fit to a byte limit",
        verdict="holds" if fitted_bytes <= fit.limit_bytes and meant == fitted_bytes else "broken",
        evidence=text,
        figures={
            "limit_bytes": float(fit.limit_bytes),
            "below_share": distance,
            "tries": float(len(packed.fit_tries)),
        },
    )


def _scores(evidence: Evidence) -> dict[str, Score]:
    merged, evaluation = evidence.results.merged, evidence.results.evaluation
    scores = {"last iterate": merged.last, "merged": merged.score, "quantized": evaluation.non_overlapping}
    learned = evaluation.test_time_training
    more = {
        "quantized, sliding": evaluation.sliding,
        "without test-time training": learned and learned.without,
        "with test-time training": learned and learned.adapted,
    }
    return scores | {name: score for name, score in more.items() if score}


def _same(reported: float | None, measured: float | None) -> bool:
    if reported is None or measured is None:
        return False
    return abs(reported - measured) <= _SAME_ERROR * max(reported, measured)
