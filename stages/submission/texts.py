"""Texts of a submission folder: README.md, the training log of a seed, requirements.txt."""

from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq

from schemas.evaluate import scored_with
from schemas.introspect import describe_fields
from schemas.package import BLOB_NAME, SCRIPT_NAME
from schemas.pipeline import PipelineReport
from schemas.submission import INFO_NAME, REQUIREMENTS_NAME, RuleResult, SubmissionInfo
from stages.core.scoring import score_line
from stages.core.trainer import StepMetrics, step_line
from stages.report.rows import markdown_table
from stages.store.source import fairway_version

SCRIPT_PACKAGES = ("torch", "numpy", "sentencepiece", "zstandard")
LOG_STEP_LINES = 200
_FIGURES = (
    ("val_bpb", "bits per byte of the blob in this folder's format, mean over the seeds"),
    ("val_loss", "the same in nats a token"),
    ("pre_quant_val_bpb", "merged model before quantization, non-overlapping windows"),
    ("pre_quant_val_loss", "the same in nats a token"),
    ("post_quant_val_bpb_non_overlapping", "the blob, non-overlapping windows"),
    ("bytes_total", "code and model as they lie here; the limit is 16,000,000"),
    ("bytes_model", BLOB_NAME),
    ("bytes_code", SCRIPT_NAME),
    ("step_stop", "optimizer steps"),
    ("wallclock_seconds", "training"),
    ("eval_time_seconds", "evaluation"),
)


def log_name(seed: int) -> str:
    return f"train_seed{seed}.log"


def requirements() -> str:
    """The packages that the script imports, at the versions installed here."""
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in SCRIPT_PACKAGES)


def train_log(report: PipelineReport, root: Path) -> str:
    """The training log of one seed, made from its records; at most about 200 lines of steps."""
    trained, schedule = report.trained, report.spec.train.schedule
    compute = report.spec.train.compute
    metrics = root / trained.metrics.path
    there = pq.read_schema(metrics).names
    names = [metric.name for metric in fields(StepMetrics) if metric.name in there]
    rows = [StepMetrics(**row) for row in pq.read_table(metrics, columns=names).to_pylist()]
    every = max(1, len(rows) // LOG_STEP_LINES)
    lines = [
        (
            f"{report.name}: seed {report.spec.train.seed}, {compute.world_size} × {compute.device}, "
            f"{report.created_at}"
        )
    ]
    lines += [f"{info.name} = {info.value}" for info in describe_fields(report.spec)]
    lines.append(
        f"{trained.num_parameters:,} parameters, {trained.tokens_seen:,} tokens, "
        f"{trained.epochs:.2f} passes over the training split"
    )
    lines += [
        (
            f"group {group.name}: {len(group.parameters)} tensors, {group.optimizer}, lr {group.lr:g}, "
            f"weight decay {group.weight_decay:g}"
        )
        for group in trained.groups
    ]
    qat = next((row.step for row in rows if row.qat_on), None)
    for row in rows:
        if row.step == qat:
            lines.append(f"late QAT is on from step {row.step} (lr scale {row.lr_scale:.3f})")
        if row.step % every == 0 or row.step in (1, len(rows)):
            lines.append(step_line(row, schedule))
    lines.append(
        f"trained {trained.steps} steps in {trained.timings.training_seconds:.3f} s, stopped by "
        f"{trained.stopped_by}"
    )
    lines.append(f"merged ({report.merged.method}) steps {', '.join(map(str, report.merged.steps))}")
    lines.append(
        f"last iterate {report.merged.last.bpb:.8f} bpb, merged {report.merged.score.bpb:.8f} bpb, "
        "both before quantization"
    )
    lines.append(f"blob {report.packed.blob_bytes} bytes sha256 {report.packed.blob.sha256}")
    lines.append(score_line("non_overlapping", report.evaluation.non_overlapping.model_dump()))
    if sliding := report.evaluation.sliding:
        reach = report.spec.evaluate.scoring.attention_window or None
        lines.append(score_line("sliding", sliding.model_dump(), reach))
    return "\n".join(lines) + "\n"


def readme(info: SubmissionInfo, report: PipelineReport, rules: Sequence[RuleResult] = ()) -> str:
    """README.md: description, figures of submission.json, techniques with their evidence, commands."""
    values = info.model_dump(mode="json")
    figures = [[f"`{name}`", str(values[name]), meaning] for name, meaning in _FIGURES]
    techniques = [
        [finding.title, finding.verdict, finding.evidence]
        for finding in report.audit.findings
        if finding.verdict != "off"
    ]
    sections = {
        f"# {info.name}": (
            f"{info.blurb}\n\nBy {info.author} ({info.github_id}), {info.date}. Made "
            f"with Fairway {fairway_version()}."
        ),
        "## Figures": markdown_table(["figure", "value", "what it is"], figures)
        + f"\n\n`val_bpb` is scored with {scored_with(report.spec.evaluate.scoring)}.",
        "## Seeds": _seeds(info),
        "## What each technique did, as measured": markdown_table(
            ["technique or rule", "verdict", "evidence"], techniques
        ),
        "## How to run": _how_to_run(info, report),
        "## Files": f"`{SCRIPT_NAME}` is the whole program with its settings, `{BLOB_NAME}` the packed "
        f"model: these two count against the limit. `{INFO_NAME}` has the figures above, "
        f"`{log_name(info.seed)}` is a train log.",
    }
    if rules:
        rows = [[result.rule, result.verdict, result.reason] for result in rules]
        table = markdown_table(["rule", "verdict", "reason"], rows)
        sections["## Rules"] = (
            f"Checked by `fairway check`, which reads the folder and runs nothing of it.\n\n{table}"
        )
    return "\n\n".join(f"{heading}\n\n{text}" for heading, text in sections.items()) + "\n"


def _seeds(info: SubmissionInfo) -> str:
    rows = [
        [
            seed,
            f"{result.val_bpb:.8f}",
            f"{result.val_loss:.8f}",
            f"{result.wallclock_seconds:.1f}",
            f"{result.bytes_total:,}",
        ]
        for seed, result in info.seed_results.items()
    ]
    table = markdown_table(["seed", "val_bpb", "val_loss", "training seconds", "bytes"], rows)
    return f"{table}\n\nThe model in this folder is that of seed {info.seed}."


def _how_to_run(info: SubmissionInfo, report: PipelineReport) -> str:
    tokenized, compute = report.tokenized, report.spec.train.compute
    machines = (
        "--standalone"
        if compute.num_nodes == 1
        else f"--nnodes={compute.num_nodes} --node-rank=R --master-addr=FIRST --master-port=29500"
    )
    torchrun = f"torchrun {machines} --nproc_per_node={compute.num_processes} {SCRIPT_NAME}"
    shards = ", ".join(f"`{ref.sha256[:12]}`" for ref in tokenized.val_shards)
    return (
        "```\n"
        f"pip install -r {REQUIREMENTS_NAME}\n"
        "export DATA_PATH=data/datasets/fineweb10B_sp1024          # fineweb_train_*.bin and "
        "fineweb_val_*.bin\n"
        "export TOKENIZER_PATH=data/tokenizers/fineweb_1024_bpe.model\n"
        f"SEED={info.seed} {torchrun}          # trains, merges, quantizes, packs {BLOB_NAME} and scores it\n"
        f"{torchrun} --eval    # only scores {BLOB_NAME}\n"
        "```\n\n"
        f"The figures are from {info.hardware}. Validation shards (sha256) {shards}, tokenizer "
        f"`{tokenized.tokenizer_sha256[:12]}`: "
        f"{tokenized.val.num_tokens:,} tokens; {report.evaluation.byte_account}."
    )
