"""What a run switched on, each with what was measured of it: rows for a submission's README."""

from schemas.pipeline import PipelineReport

Row = tuple[str, str]


def technique_rows(report: PipelineReport) -> list[Row]:
    """(technique, evidence) for all that the settings switch on."""
    return [*_model_rows(report), *_training_rows(report), *_shipping_rows(report)]


def _model_rows(report: PipelineReport) -> list[Row]:
    model, moved = report.spec.train.model, {change.name: change for change in report.trained.changes}

    def change(prefix: str) -> str:
        found = [item for name, item in moved.items() if name.startswith(prefix)]
        still = [item.name for item in found if item.change_rms == 0]
        largest = max((item.change_rms for item in found), default=0.0)
        return f"largest rms change of its {len(found)} tensors {largest:.3g}" + (f"; unchanged: {', '.join(still)}" if still else "")

    rows = [("partial RoPE", f"{model.rope_dims} of {model.head_dim} dims of each head rotate ({model.rope_dims / model.head_dim:.0%})")]
    if model.xsa_layers:
        rows.append(("XSA", f"the last {model.xsa_layers} of {model.num_layers} layers"))
    if model.value_embedding_dim:
        layers = ", ".join(map(str, model.value_embedding_layers))
        rows.append(("shared value embedding", f"{model.value_embedding_dim} dims in layers {layers}; {change('value_embedding.')}"))
    if model.smear_gate:
        rows.append(("SmearGate", change("smear.")))
    if model.unet_skips:
        rows.append(("U-Net skips", change("skip_weights")))
    if model.ln_scale:
        rows.append(("LN scale", "the norm before layer i is scaled by 1/sqrt(i+1)"))
    return rows


def _training_rows(report: PipelineReport) -> list[Row]:
    trained, merged = report.trained, report.merged
    rows = [
        (group.optimizer, f"{group.name}: {group.num_parameters:,} parameters, lr {group.lr:g}, weight decay {group.weight_decay:g}")
        for group in trained.groups
    ]
    if report.spec.train.qat.start_lr_scale > 0:
        rows.append(
            (
                "late QAT",
                f"{trained.qat_steps:,} of {trained.steps:,} steps; {merged.num_with_qat} of {len(merged.steps)} averaged snapshots saw it",
            )
        )
    if merged.method != "last":
        effect = f"{merged.merged.bpb - merged.last.bpb:+.5f} bpb against the last iterate"
        rows.append(
            (
                f"averaging ({merged.method})",
                f"{len(merged.steps)} snapshots, lr scales {max(merged.lr_scales):.3f} to {min(merged.lr_scales):.3f}; {effect}",
            )
        )
    return rows


def _shipping_rows(report: PipelineReport) -> list[Row]:
    packed, evaluation = report.packed, report.evaluation
    clipped = sum(clip.num_rows for tensor in packed.tensors for clip in tensor.clips if clip.clip_ratio != 1)
    all_rows = sum(clip.num_rows for tensor in packed.tensors for clip in tensor.clips)
    saved = packed.blob_bytes_round_to_nearest - packed.blob_bytes
    gap = f"{report.val_bpb_quantized - report.val_bpb_merged:+.5f} bpb against the merged model"
    bits = f"{8 * packed.blob_bytes / packed.num_parameters:.2f} bits a parameter as shipped"
    rows = [
        (
            f"quantization ({packed.method})",
            f"{bits}; {gap}; {clipped:,} of {all_rows:,} rows clipped; {saved:+,} bytes saved against plain rounding",
        )
    ]
    if evaluation.sliding:
        effect = f"{evaluation.sliding.bpb - evaluation.non_overlapping.bpb:+.5f} bpb"
        rows.append(
            (
                "sliding windows",
                f"stride {report.spec.evaluate.scoring.stride}: {effect}; {evaluation.sliding.num_targets:,} targets, each scored once",
            )
        )
    return rows
