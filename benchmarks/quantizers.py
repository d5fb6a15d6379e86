"""Every quantizer on the same trained weights: bytes, bits per byte, gap to the unquantized model, seconds.

    python -m benchmarks.quantizers RUN [RUN …] --store .fairway [--json results.jsonl]
    python -m benchmarks.quantizers --show benchmarks/quantizers.jsonl

RUN is a pipeline run in the store (name or id); several are seeds of one preset, whose mean and spread the
last table has. Weights, training and validation shards are the run's own. Bytes are the blob's, and for the
coded matrices the decoder's source besides, which the script would not need without them. The gap is between
two scores of the same process, same windows and precision.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import circumstances
from presets.quantizers import SCHEMES, scheme_settings
from schemas.compute_settings import ComputeSettings
from schemas.quantizer_settings import CalibratedSettings, CalibrationSettings, Ecsq, Gptq, GptqLite
from schemas.scoring_settings import ScoringSettings
from stages.core.bits_per_byte import TokenBytes, load_token_bytes
from stages.core.blob.packing import pack, unpack
from stages.core.calibrated.calibration import collect_statistics
from stages.core.calibrated.coded_model import COARSEST_LOSS_NATS, CodedPlan, plan_coded
from stages.core.calibrated.fit import fit_multiplier
from stages.core.calibrated.gptq import gptq_model
from stages.core.calibrated.whole_model import quantize_state
from stages.core.calibrated.with_text import calibration_batches
from stages.core.distributed import compute_dtype
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.quantizers.quantized import QuantizedModel
from stages.core.scoring import score
from stages.packaging.bundle import bundle
from stages.packaging.script import ENTRY_MODULE
from stages.store.runs import find_run
from stages.store.store import Store

DECODER_MODULES = (
    "stages.core.blob.rans",
    "stages.core.blob.symbol_models",
    "stages.core.blob.coded_section",
    "stages.core.quantizers.coded_grid",
)
REFERENCE, BASELINE = "reference", "round_to_nearest:int6"
FEWER_THAN_REFERENCE, FEWER_THAN_BASELINE, GAP_SHARE = 0.40, 0.15, 1 / 3


@dataclass(frozen=True)
class Row:
    """One scheme on one run."""

    scheme: str
    num_bytes: int
    bpb: float
    gap_bpb: float
    seconds: float


@dataclass
class Subject:
    """One run's model and texts, and its score without quantization."""

    name: str
    model: GPT
    state: dict[str, Tensor]
    train: TokenStream
    val: TokenStream
    table: TokenBytes
    scoring: ScoringSettings
    compute: ComputeSettings
    metadata: dict[str, str]
    bpb: float = math.nan

    def score(self, state: dict[str, Tensor]) -> float:
        self.model.load_state_dict(state)
        return score(
            self.model,
            self.val,
            self.table,
            self.scoring,
            self.scoring.sequence_length,
            compute_dtype(self.compute),
        ).bpb


def load_subject(store: Store, run: str) -> Subject:
    report = find_run(store.root, run)
    if problems := list(store.problems((report.merged.weights, report.tokenized))):
        raise SystemExit(f"{run}: {problems[0]}")
    model = GPT(report.merged.model)
    streams = [
        TokenStream([store.root / ref.path for ref in shards])
        for shards in (report.tokenized.train_shards, report.tokenized.val_shards)
    ]
    subject = Subject(
        name=report.name,
        model=model,
        state=load_file(store.root / report.merged.weights.path),
        train=streams[0],
        val=streams[1],
        table=load_token_bytes(store.root / report.tokenized.tokenizer.path),
        scoring=report.spec.merge.scoring,
        compute=report.spec.merge.compute,
        metadata={"model": "the same for all"},
    )
    subject.bpb = subject.score(subject.state)
    return subject


def measure(
    subject: Subject,
    scheme: str,
    make: Callable[[], QuantizedModel],
    extra_bytes: int = 0,
    before: float = 0.0,
) -> Row:
    """Quantize, pack, unpack, score.

    `before` seconds were spent on work that several schemes share (calibration).
    """
    started = time.perf_counter()
    blob = pack(make(), subject.metadata, GptqLite().zstd_level)
    seconds = time.perf_counter() - started + before
    bpb = subject.score(unpack(blob)[0])
    return Row(scheme, len(blob) + extra_bytes, bpb, bpb - subject.bpb, seconds)


def compare(subject: Subject, say: Callable[[Row], None]) -> list[Row]:
    """All schemes on one run, the goals' two comparisons among them; calibrated once for all that need it."""
    layers = len(subject.model.blocks)
    settings = {name: scheme_settings(name, GptqLite(), layers) for name in SCHEMES}
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        say(row)

    for name, chosen in settings.items():
        if not isinstance(chosen, CalibratedSettings):
            add(measure(subject, name, lambda chosen=chosen: quantize_state(subject.state, chosen)))
    started = time.perf_counter()
    subject.model.load_state_dict(subject.state)
    calibration = CalibrationSettings()
    found = collect_statistics(
        subject.model, calibration_batches(subject.train, calibration), calibration.seed
    )
    calibrating = time.perf_counter() - started
    for name, chosen in settings.items():
        if isinstance(chosen, Gptq):
            add(
                measure(
                    subject,
                    name,
                    lambda chosen=chosen: gptq_model(subject.state, chosen, found),
                    before=calibrating,
                )
            )
    coded = {name: chosen for name, chosen in settings.items() if isinstance(chosen, Ecsq)}
    plan = plan_coded(subject.state, next(iter(coded.values())), found)
    by_scheme = {row.scheme: row for row in rows}
    code = decoder_bytes()
    for share, of in (
        (1 - FEWER_THAN_REFERENCE, REFERENCE),
        (1 - FEWER_THAN_BASELINE, BASELINE),
        (1.0, BASELINE),
        (0.6, BASELINE),
    ):
        limit = int(by_scheme[of].num_bytes * share)
        scheme = f"ecsq fitted to {share:.0%} of {of.partition(':')[0]}"
        add(
            measure(
                subject,
                scheme,
                lambda limit=limit: fitted(plan, subject, limit - code),
                extra_bytes=code,
                before=calibrating,
            )
        )
    for name, chosen in coded.items():
        add(
            measure(
                subject,
                name,
                lambda loss=chosen.loss_budget_nats: plan.quantized(plan.multiplier_for(loss)),
                extra_bytes=code,
                before=calibrating,
            )
        )
    return rows


def fitted(plan: CodedPlan, subject: Subject, limit_bytes: int) -> QuantizedModel:
    sizes: dict[float, int] = {}

    def num_bytes(multiplier: float) -> int:
        sizes[multiplier] = len(pack(plan.quantized(multiplier), subject.metadata, plan.settings.zstd_level))
        return sizes[multiplier]

    settings = Ecsq()
    start, coarsest = (
        plan.multiplier_for(settings.loss_budget_nats),
        plan.multiplier_for(COARSEST_LOSS_NATS),
    )
    return plan.quantized(
        fit_multiplier(
            num_bytes, start, coarsest, limit_bytes, settings.fit.tolerance_fraction, plan.bytes_per_octave
        )
    )


def decoder_bytes() -> int:
    """Source bytes of the modules that only coded matrices need, as they stand in the script."""
    source, _ = bundle(ENTRY_MODULE, keep_comments=True)
    total = 0
    for module in DECODER_MODULES:
        start = source.index(f"# ---- {module.replace('.', '/')}.py ----")
        end = source.find("\n# ---- ", start + 1)
        total += len(source[start : end if end > 0 else len(source)].encode())
    return total


def verdicts(by_run: Sequence[list[Row]]) -> list[tuple[str, str, bool]]:
    """The goals, on the means over the runs: what was asked, what came out, whether it is met."""
    mean = mean_rows(by_run)
    reference, baseline = mean[REFERENCE], mean[BASELINE]
    fewer = mean[f"ecsq fitted to {1 - FEWER_THAN_REFERENCE:.0%} of reference"]
    less = mean[f"ecsq fitted to {1 - FEWER_THAN_BASELINE:.0%} of round_to_nearest"]
    equal = mean["ecsq fitted to 100% of round_to_nearest"]
    return [
        (
            f"at least {FEWER_THAN_REFERENCE:.0%} fewer bytes than the reference's scheme at no larger gap",
            (
                f"{1 - fewer.num_bytes / reference.num_bytes:.1%} fewer, gap {fewer.gap_bpb:+.5f} "
                f"against {reference.gap_bpb:+.5f}"
            ),
            fewer.num_bytes <= (1 - FEWER_THAN_REFERENCE) * reference.num_bytes
            and fewer.gap_bpb <= reference.gap_bpb,
        ),
        (
            f"at least {FEWER_THAN_BASELINE:.0%} fewer bytes than plain int6 at no larger gap",
            (
                f"{1 - less.num_bytes / baseline.num_bytes:.1%} fewer, gap {less.gap_bpb:+.5f} against "
                f"{baseline.gap_bpb:+.5f}"
            ),
            less.num_bytes <= (1 - FEWER_THAN_BASELINE) * baseline.num_bytes
            and less.gap_bpb <= baseline.gap_bpb,
        ),
        (
            "at equal bytes at most a third of plain int6's gap",
            f"gap {equal.gap_bpb:+.5f} against {baseline.gap_bpb:+.5f}",
            equal.num_bytes <= baseline.num_bytes and equal.gap_bpb <= GAP_SHARE * baseline.gap_bpb,
        ),
    ]


def mean_rows(by_run: Sequence[list[Row]]) -> dict[str, Row]:
    means = {}
    for rows in zip(*by_run, strict=True):
        count = len(rows)
        means[rows[0].scheme] = replace(
            rows[0],
            num_bytes=round(sum(row.num_bytes for row in rows) / count),
            bpb=sum(row.bpb for row in rows) / count,
            gap_bpb=sum(row.gap_bpb for row in rows) / count,
            seconds=sum(row.seconds for row in rows) / count,
        )
    return means


def show_recorded(console: Console, lines: list[dict[str, Any]]) -> None:
    presets: dict[str, dict[str, tuple[float, list[Row]]]] = {}
    for line in lines:
        rows = [Row(**row) for row in line["rows"]]
        presets.setdefault(line["run"].partition("-seed")[0], {})[line["run"]] = (
            line["bpb_unquantized"],
            rows,
        )
    for runs in presets.values():
        show(console, runs)


def show(console: Console, runs: dict[str, tuple[float, list[Row]]]) -> None:
    """Means over `runs`: name -> bits per byte unquantized, and the schemes' rows. Then the goals."""
    by_run = [rows for _, rows in runs.values()]
    means, merged = mean_rows(by_run), statistics.mean(bpb for bpb, _ in runs.values())
    table = Table(title=f"{', '.join(runs)}: unquantized {merged:.5f} bpb (mean)", title_justify="left")
    for column in ("scheme", "bytes", "bpb", "gap", "deviation of the gap", "seconds"):
        table.add_column(column, justify="left" if column == "scheme" else "right")
    for index, (scheme, row) in enumerate(means.items()):
        gaps = [rows[index].gap_bpb for rows in by_run]
        spread = f"{statistics.stdev(gaps):.5f}" if len(gaps) > 1 else ""
        table.add_row(
            scheme,
            f"{row.num_bytes:,}",
            f"{row.bpb:.5f}",
            f"{row.gap_bpb:+.5f}",
            spread,
            f"{row.seconds:.1f}",
        )
    console.print(table)
    for goal, found, met in verdicts(by_run):
        console.print(f"{'met' if met else 'MISSED'}: {goal}: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantizers", description="Every quantizer on the same trained weights."
    )
    parser.add_argument("runs", nargs="*", help="runs of the store, by name or id: the seeds of one preset")
    parser.add_argument(
        "--show",
        type=Path,
        metavar="FILE",
        help="only the tables, of what --json wrote; a table for each preset",
    )
    parser.add_argument("--store", default=".fairway", help="folder of the store (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="append the figures to this file, a JSON line for each run")
    options = parser.parse_args()
    console = Console(markup=False)
    if options.show:
        show_recorded(
            console, [json.loads(line) for line in options.show.read_text(encoding="utf-8").splitlines()]
        )
        return
    if not options.runs:
        parser.error("RUN: name the runs to measure, or --show FILE")
    torch.set_num_threads(options.threads)
    store, by_name = Store(options.store), {}
    for run in options.runs:
        subject = load_subject(store, run)
        console.print(f"{subject.name}: {subject.bpb:.5f} bpb unquantized")
        rows = compare(
            subject, lambda row: console.print(f"  {row.scheme}: {row.num_bytes:,} bytes, {row.gap_bpb:+.5f}")
        )
        by_name[subject.name] = (subject.bpb, rows)
        if options.json:
            line = circumstances() | {
                "benchmark": "quantizers",
                "run": subject.name,
                "bpb_unquantized": subject.bpb,
                "decoder_bytes": decoder_bytes(),
                "rows": [vars(row) for row in rows],
            }
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    show(console, by_name)


if __name__ == "__main__":
    main()
