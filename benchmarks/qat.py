"""Late QAT on the quantizer's grid: does it help the quantized model?

For each seed the same training without and with it.

    python -m benchmarks.qat --preset medium --seeds 1337,1338 --shards DIR --device cuda --json qat.jsonl
    python -m benchmarks.qat --show qat.jsonl [more.jsonl]      only the tables of runs that are done
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.qat --cost     time of a step with QAT off and on

Threads must not spin while a step's cost is measured.

DIR holds shards of both splits and a tokenizer's .model; without it the demo's of the embedded corpus are
made. The runs of a seed share their training up to the step where QAT begins: those with QAT go on from the
other's state, so that a difference between them is QAT's. Averaged snapshots and the last iterate are both
quantized, because an average is not on the grid. Every score is in float32, so that the smallest gaps are not
those of its rounding; bytes are the blob's.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.common import circumstances
from benchmarks.qat_schemes import GRIDS, QUANTIZED_WITHOUT, Scheme
from benchmarks.qat_tables import WITHOUT, show
from presets import load_preset
from schemas.averaging_settings import AveragingSettings
from schemas.pipeline import PipelineSpec
from schemas.qat_settings import QatSettings
from schemas.quantizer_settings import (
    CalibratedSettings,
    CalibrationSettings,
    Ecsq,
    Gptq,
    Reference,
)
from schemas.train_settings import SnapshotSettings, TrainSettings
from stages.core.averaging import average_states, averaging_weights, choose_snapshots
from stages.core.bits_per_byte import load_token_bytes
from stages.core.blob.packing import pack, unpack
from stages.core.calibrated.calibration import MatrixStatistics, collect_statistics
from stages.core.calibrated.coded_model import plan_coded
from stages.core.calibrated.gptq import gptq_model
from stages.core.calibrated.whole_model import quantize_state
from stages.core.calibrated.with_text import calibration_batches
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.schedule import Clock, lr_scale_at, qat_on_at
from stages.core.scoring import score
from stages.core.trainer import Hooks, Trainer, TrainState
from stages.store.machine import resolve_precision

State = dict[str, Tensor]


@dataclass(frozen=True)
class Texts:
    """Shards of both splits, and the tokenizer."""

    train: list[Path]
    val: list[Path]
    tokenizer: Path


def find_texts(folder: Path | None) -> Texts:
    """Raises SystemExit, naming what is missing, for a folder that lacks something."""
    if folder is None:
        from benchmarks.workers import (
            demo_tokens,
        )  # the store and its stages, which a machine with nothing but shards need not have

        store, tokenized = demo_tokens()
        train, val = (
            [store.root / ref.path for ref in refs] for refs in (tokenized.train_shards, tokenized.val_shards)
        )
        return Texts(train, val, store.root / tokenized.tokenizer.path)
    found = {pattern: sorted(folder.glob(pattern)) for pattern in ("*train*.bin", "*val*.bin", "*.model")}
    for pattern, paths in found.items():
        if not paths:
            raise SystemExit(
                f"--shards {folder}: no file {pattern} there; it must hold shards of both splits "
                "and the tokenizer's model"
            )
    return Texts(found["*train*.bin"], found["*val*.bin"], found["*.model"][0])


def spec_for(preset: str, seed: int, device: str, threads: int, quick: bool) -> PipelineSpec:
    """The preset without QAT, its learning rate falling to 0 and its snapshots below a tenth averaged.

    quick: a model and a training that take seconds.
    """
    spec = resolve_precision(load_preset(preset))
    compute = replace(spec.train.compute, device=device, threads_per_process=threads)
    every = spec.train.snapshots.every_steps if spec.train.snapshots.start_lr_scale else 4
    train = replace(
        spec.train,
        seed=seed,
        compute=compute,
        qat=replace(spec.train.qat, start_lr_scale=0.0),
        schedule=replace(spec.train.schedule, min_lr_scale=0.0),
        snapshots=SnapshotSettings(start_lr_scale=0.1, every_steps=every),
    )
    if quick:
        small = load_preset("smoke").train
        model = replace(small.model, vocab_size=train.model.vocab_size)
        train = replace(
            train,
            model=model,
            schedule=small.schedule,
            data=small.data,
            snapshots=replace(train.snapshots, every_steps=1),
        )
    averaging = AveragingSettings(start_lr_scale=0.1)
    return spec.derive(train=train, merge=spec.merge.derive(averaging=averaging))


def first_step_under_qat(settings: TrainSettings, start_lr_scale: float) -> int:
    """Steps done when QAT comes on.

    Raises SystemExit for a start that no step, or a snapshot before it, would see.
    """
    if start_lr_scale < settings.snapshots.start_lr_scale:
        raise SystemExit(
            f"--starts {start_lr_scale}: snapshots begin at {settings.snapshots.start_lr_scale}; "
            "QAT must not begin later"
        )
    qat = QatSettings(start_lr_scale)
    for step in range(settings.schedule.max_steps):
        if qat_on_at(lr_scale_at(Clock(step, 0.0), settings.schedule), qat):
            return step
    raise SystemExit(f"--starts {start_lr_scale}: the learning-rate scale never falls so far")


class Run:
    """One training: its snapshots, and its states after the steps of `keep`, before which nothing else
    looks at it.
    """

    def __init__(
        self, settings: TrainSettings, shards: list[Path], keep: set[int], resume: TrainState | None = None
    ) -> None:
        self.settings = settings
        self.states: dict[int, TrainState] = {}
        self.snapshots: list[tuple[float, State]] = []
        self.done = resume.steps if resume else 0
        self._keep = keep
        hooks = Hooks(
            snapshot=lambda step, lr_scale, qat_on, weights: self.snapshots.append((lr_scale, weights)),
            checkpoint_due=self._due,
            checkpoint=lambda state: self.states.update({state.steps: state}),
        )
        began = time.perf_counter()
        trainer = Trainer(settings, shards, hooks, resume)
        self.trained = trainer.run()
        self.last = trainer.weights()
        self.seconds = time.perf_counter() - began

    def _due(self) -> bool:
        """Asked once after each step."""
        self.done += 1
        return self.done in self._keep

    def weights(self, spec: PipelineSpec) -> dict[str, State]:
        averaging = spec.merge.averaging
        chosen = choose_snapshots([lr_scale for lr_scale, _ in self.snapshots], averaging)
        merged = average_states(
            [self.snapshots[index][1] for index in chosen], averaging_weights(len(chosen), averaging)
        )
        return {"average": merged, "last iterate": self.last}


class Judge:
    """Scores and quantizes weights of one preset."""

    def __init__(self, spec: PipelineSpec, texts: Texts) -> None:
        self.spec, self.settings = spec, spec.merge.scoring
        self.model = GPT(spec.train.model).to(spec.train.compute.device)
        self.val, self.table = TokenStream(texts.val), load_token_bytes(texts.tokenizer)
        self.calibration = CalibrationSettings()
        self._batches = calibration_batches(TokenStream(texts.train), self.calibration)

    def bpb(self, state: State) -> float:
        self.model.load_state_dict(state)
        torch.set_float32_matmul_precision("highest")  # training on a GPU lets its products be coarser
        return score(
            self.model, self.val, self.table, self.settings, self.settings.sequence_length, torch.float32
        ).bpb

    def statistics(self, state: State) -> dict[str, MatrixStatistics]:
        model = GPT(self.spec.train.model)
        model.load_state_dict(state)
        return collect_statistics(model, self._batches, self.calibration.seed)

    def quantized(
        self, state: State, scheme: Scheme, statistics: dict[str, MatrixStatistics] | None
    ) -> tuple[int, State]:
        settings = scheme.settings()
        if isinstance(settings, Ecsq):
            assert statistics is not None
            plan = plan_coded(state, settings, statistics)
            model = plan.quantized(plan.multiplier_for(settings.loss_budget_nats))
        elif isinstance(settings, Gptq):
            assert statistics is not None
            model = gptq_model(state, settings, statistics)
        else:
            model = quantize_state(state, settings)
        blob = pack(model, {"model": "the same for all"}, settings.zstd_level)
        return len(blob), unpack(blob)[0]


class Ledger:
    """Result lines, each written as soon as it is there."""

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path, self.about, self.rows = path, about, list[dict[str, Any]]()

    def add(self, **row: Any) -> None:
        self.rows.append(self.about | row)
        quantized = (
            f"{row['scheme']}: {row['bpb']:.5f} bpb, gap {row['gap_bpb']:+.5f}, {row['num_bytes']:,} bytes"
        )
        print(f"seed {row['seed']}, {row['training']}, {row['weights']}, {quantized}", flush=True)
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")


def run_seed(spec: PipelineSpec, texts: Texts, starts: list[float], ledger: Ledger) -> None:
    """Train without QAT, then on each grid from each start, and judge each result at once."""
    begins = {start: first_step_under_qat(spec.train, start) for start in starts}
    judge = Judge(spec, texts)
    plain = Run(spec.train, texts.train, set(begins.values()))
    judge_run(judge, plain, WITHOUT, QUANTIZED_WITHOUT, ledger)
    for start, step in begins.items():
        for grid, schemes in GRIDS.items():
            settings = replace(spec.train, qat=grid.qat(start))
            run = Run(settings, texts.train, set(), plain.states.get(step))
            judge_run(judge, run, f"QAT on {grid.name} below {start:g}", schemes, ledger)


def judge_run(judge: Judge, run: Run, training: str, schemes: tuple[Scheme, ...], ledger: Ledger) -> None:
    print(
        f"seed {run.settings.seed}, {training}: {run.trained.steps} steps done in {run.seconds:.1f} s",
        flush=True,
    )
    for which, state in run.weights(judge.spec).items():
        unquantized = judge.bpb(state)
        reads_text = any(issubclass(scheme.quantizer, CalibratedSettings) for scheme in schemes)
        found = judge.statistics(state) if reads_text else None
        for scheme in schemes:
            num_bytes, stored = judge.quantized(state, scheme, found)
            bpb = judge.bpb(stored)
            ledger.add(
                seed=run.settings.seed,
                training=training,
                qat_steps=run.trained.qat_steps,
                weights=which,
                scheme=scheme.name,
                bpb_unquantized=unquantized,
                bpb=bpb,
                gap_bpb=bpb - unquantized,
                num_bytes=num_bytes,
                training_seconds=run.seconds,
            )


def cost(spec: PipelineSpec, texts: Texts, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a step and of the rounding before it: processor time on the CPU, wall clock on a
    GPU; medians of `rounds` in turn.
    """
    grids: dict[str, QatSettings] = {"off": spec.train.qat, **{grid.name: grid.qat(1.0) for grid in GRIDS}}
    grids["reference int6"] = Scheme(Reference, "int6").qat(1.0)
    trainers = {
        name: Trainer(replace(spec.train, qat=qat), texts.train, Hooks()) for name, qat in grids.items()
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in grids}
    for step in range(rounds + 1):
        for name, trainer in trainers.items():
            began = now(trainer.device)
            if trainer.settings.qat.start_lr_scale:
                trainer.model.update_qat()
            between = now(trainer.device)
            trainer._step(step, 1.0, 0.95, False)  # what is rounded has been updated
            times[name].append((between - began, now(trainer.device) - between))
    for trainer in trainers.values():
        trainer.loader.close()
    medians = {
        name: [1000 * statistics.median(column) for column in zip(*pairs[1:], strict=True)]
        for name, pairs in times.items()
    }
    return [
        {"grid": name, "rounding_ms": rounding, "step_ms": step} for name, (rounding, step) in medians.items()
    ]


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("demo", "medium"), default="demo")
    parser.add_argument("--seeds", default="1337,1338,1339", help="with commas (default: %(default)s)")
    parser.add_argument(
        "--starts",
        default="0.2",
        help="learning-rate scales below which QAT is on, with commas (default: %(default)s)",
    )
    parser.add_argument(
        "--shards", type=Path, help="folder with train and val shards and the tokenizer's .model"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model for some steps: whether it runs, not what it finds"
    )
    parser.add_argument("--cost", action="store_true", help="only the time of a step")
    parser.add_argument(
        "--rounds", type=int, default=10, help="steps of each kind for --cost (default: %(default)s)"
    )
    parser.add_argument(
        "--show", type=Path, nargs="+", help="result files to make the tables of; trains nothing"
    )
    parser.add_argument(
        "--json", type=Path, help="append each result to this file as it comes, a JSON line each"
    )
    options = parser.parse_args()
    console = Console(width=200, markup=False)
    if options.show:
        lines = [
            json.loads(line)
            for path in options.show
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        show(console, [line for line in lines if line["benchmark"] == "qat"])
        return
    texts = find_texts(options.shards)
    about = circumstances() | {"preset": options.preset, "quick": options.quick}
    about["device"] = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    seeds = [int(seed) for seed in options.seeds.split(",")]
    specs = [spec_for(options.preset, seed, options.device, options.threads, options.quick) for seed in seeds]
    if options.cost:
        for row in cost(specs[0], texts, options.rounds):
            print(
                f"{row['grid']}: rounding {row['rounding_ms']:.1f} ms, step {row['step_ms']:.1f} ms",
                flush=True,
            )
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(about | row | {"benchmark": "qat cost"}) + "\n")
        return
    ledger = Ledger(options.json, about | {"benchmark": "qat"})
    for spec in specs:
        run_seed(spec, texts, [float(start) for start in options.starts.split(",")], ledger)
    assert all(math.isfinite(row["bpb"]) for row in ledger.rows)
    show(console, ledger.rows)


if __name__ == "__main__":
    main()
