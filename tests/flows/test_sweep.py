"""A sweep around the chain: outcomes of trials, an interruption, what is announced, and its files."""

import csv
import hashlib
import json
import math
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from prefect.states import Completed, Crashed, Failed
from typer.testing import CliRunner

from flows import sweep as module
from flows.cli.main import app
from flows.inputs.specs import resolve
from flows.sweep import sweep
from schemas.errors import SpecError, StageError
from schemas.files import FileRef
from schemas.held_out import CurvePoint, HeldOut, parse_rules
from schemas.pipeline import PipelineSpec
from schemas.runtime import RunOptions
from schemas.stopped import StoppedRun
from schemas.sweep import Sweep
from stages.store.notes import load_notes
from stages.store.runs import save_report
from stages.store.stopped import save_stopped
from stages.training.metrics import HELD_OUT_COLUMNS, curve_of, read_metrics, write_table
from stages.training.stop_rules import broken_rule

RATE = "train.optimizer.muon_lr=0.003:0.3:log"
LAYERS = "train.model.num_layers=2,3,4"


def planted(spec: PipelineSpec) -> float:
    """Lowest at a learning rate of 0.1 with four layers; the seed adds up to 0.004."""
    rate, layers = spec.train.optimizer.muon_lr, spec.train.model.num_layers
    noise = 0.001 * (spec.train.seed % 5)
    return 2.0 + 0.3 * math.log10(rate / 0.1) ** 2 + 0.1 * (layers != 4) + noise


class Runs:
    """A stand-in for the chain. A run of a spec gives what `score` says, with held-out scores on the way that
    fall to it. Rules of `stop_if` end it, and `fails` may.
    """

    def __init__(self, report: Any) -> None:
        self.specs: list[PipelineSpec] = []
        self.score: Callable[[PipelineSpec], float] = planted
        self.fails: Callable[[PipelineSpec, int], Any] = lambda spec, count: None
        self.is_too_large: Callable[[PipelineSpec], bool] = lambda spec: False
        self._report = report

    def __call__(self, preset: str, overrides: Sequence[str], options: RunOptions, return_state: bool) -> Any:
        spec, run_id = resolve(preset, overrides), str(uuid.uuid4())
        self.specs.append(spec)
        metrics, points = self._scored(spec, Path(options.store), run_id)
        rules = parse_rules(options.stop_if) if options.stop_if else ()
        asked = HeldOut(every=0.2, tokens=0, scoring=spec.merge.scoring, rules=rules)
        if (state := self.fails(spec, len(self.specs) - 1)) is None and (why := broken_rule(asked, points)):
            state = Failed(message=why)
            save_stopped(Path(options.store), self._stopped(spec, run_id, why, metrics))
        elif state is None:
            state = Completed()
            save_report(Path(options.store), self._finished(spec, run_id, metrics))
        state.state_details.flow_run_id = run_id
        return state

    def _scored(self, spec: PipelineSpec, store: Path, run_id: str) -> tuple[FileRef, tuple[CurvePoint, ...]]:
        """Metrics with a score after each fifth of the run."""
        path = store / "runs" / run_id / "metrics.parquet"
        path.parent.mkdir(parents=True)
        steps = [spec.train.schedule.max_steps * n // 5 for n in range(1, 6)]
        rows = [
            {"step": step, "seconds": 1.0, "val_nats": 1.0, "val_bpb": self.score(spec) + 5 - n}
            for n, step in enumerate(steps, 1)
        ]
        write_table(path, rows, None)
        content = path.read_bytes()
        ref = FileRef(
            path=path.relative_to(store).as_posix(),
            num_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        return ref, curve_of(read_metrics(path, ("step", "seconds", *HELD_OUT_COLUMNS)), spec.train.schedule)

    def _finished(self, spec: PipelineSpec, run_id: str, metrics: FileRef) -> Any:
        report, size = self._report, self._report.size
        if self.is_too_large(spec):
            size = size.derive(limit_bytes=size.total_bytes - 5, margin_bytes=-5, fits=False)
        return report.derive(
            run_id=run_id,
            spec=spec,
            trained=report.trained.derive(metrics=metrics),
            evaluation=report.evaluation.derive(
                sliding=report.evaluation.sliding.derive(bpb=self.score(spec))
            ),
            size=size,
        )

    def _stopped(self, spec: PipelineSpec, run_id: str, why: str, metrics: FileRef) -> StoppedRun:
        kept = {name: getattr(self._report, name) for name in ("name", "preset", "created_at", "seconds")}
        return StoppedRun(run_id=run_id, spec=spec, reason=why, stages=(), metrics=metrics, **kept)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, smoke_run: Any) -> Runs:
    found = Runs(smoke_run.report)
    monkeypatch.setattr(module, "pipeline", found)
    return found


@pytest.fixture
def search(api: str, runs: Runs, tmp_path: Path) -> Callable[..., Any]:
    def call(*vary: str, validate_every: str | None = None, **asked: Any) -> Any:
        options = RunOptions(store=str(tmp_path), validate_every=validate_every)
        return sweep("smoke", vary or (RATE,), options=options, return_state=True, **asked)

    return call


def test_the_best_trial_is_announced_once_three_other_seeds_show_it(
    search: Any, runs: Runs, tmp_path: Path
) -> None:
    found: Sweep = search(trials=4).result()
    assert [trial.state for trial in found.trials] == ["complete"] * 4
    assert found.base.values == ("0.025",)
    assert found.confirmation is not None
    assert found.confirmation.seeds == (1338, 1339, 1340)
    assert [spec.train.seed for spec in runs.specs] == [1337] * 5 + [1338, 1338, 1339, 1339, 1340, 1340]
    best = min(found.trials, key=lambda trial: trial.figure("val_bpb"))
    assert found.announced == best.number == found.confirmation.trial
    assert f"**Trial {best.number} beats the base: --set train.optimizer.muon_lr=" in found.conclusions[-2]
    # Every run is in the run book, and the command that is named opens the best ones.
    notes = load_notes(tmp_path, best.run_id)
    assert notes.tags == (f"sweep:{found.label}",)
    assert f"trial {best.number}: train.optimizer.muon_lr={best.values[0]}" in notes.notes[0].text
    *_, command = found.conclusions[-1].partition("fairway compare ")
    shown = CliRunner().invoke(app, ["compare", *command.split(), "--store", str(tmp_path), "--json"])
    assert shown.exit_code == 0, shown.output
    assert [run["run_id"] for run in json.loads(shown.stdout)["runs"]][:2] == [found.base.run_id, best.run_id]


def test_a_sweep_that_was_killed_goes_on_with_the_same_trial(search: Any, runs: Runs) -> None:
    def killed(spec: PipelineSpec, count: int) -> Any:
        if count == 4:
            raise KeyboardInterrupt
        return None

    runs.fails = killed
    with pytest.raises(KeyboardInterrupt):
        search(trials=5, confirm_seeds=0)
    before = [spec.train.optimizer.muon_lr for spec in runs.specs]
    runs.fails = lambda spec, count: Crashed(message="gone") if count == 6 else None
    with pytest.raises(StageError, match=r"was stopped .* the same command goes on"):
        search(trials=5, confirm_seeds=0).result()
    runs.fails = lambda spec, count: None
    found: Sweep = search(trials=5, confirm_seeds=0).result()
    asked = [float(trial.values[0]) for trial in found.trials]
    assert asked[:4] == before[1:]
    # The base is served by the store; of the trials only the one that died, and those after it, were run.
    assert [spec.train.optimizer.muon_lr for spec in runs.specs[-3:]] == [0.025, *asked[3:]]
    assert runs.specs[6].train.optimizer.muon_lr == asked[3]
    total = len(runs.specs)
    assert search(trials=5, confirm_seeds=0).result().trials == found.trials
    assert len(runs.specs) == total + 1


def test_a_trial_that_is_refused_fails_or_is_too_large_is_not_the_end(search: Any, runs: Runs) -> None:
    """Two layers have no layer 2 for the value embedding, three are over the limit here, four diverge."""
    runs.is_too_large = lambda spec: spec.train.model.num_layers == 3
    runs.fails = lambda spec, count: Failed(message="the loss diverged") if count > 1 else None
    with pytest.raises(StageError, match=r"no trial is complete\. The first one: .*layers count from 0 to 1"):
        search(LAYERS).result()
    assert [spec.train.model.num_layers for spec in runs.specs] == [3, 3, 4]
    runs.fails = lambda spec, count: None
    assert search(LAYERS).is_failed()
    assert len(runs.specs) == 4, "only the base is run again"


def test_a_gain_that_seeds_do_not_show_is_not_announced(search: Any, runs: Runs) -> None:
    runs.score = lambda spec: 2.0 + 0.01 * math.sin(1000 * spec.train.optimizer.muon_lr + spec.train.seed + 2)
    found: Sweep = search(trials=4).result()
    assert found.confirmation is not None
    assert found.announced is None
    assert "Nothing is announced" in " ".join(found.conclusions)
    runs.score = lambda spec: 2.0 + (spec.train.optimizer.muon_lr != 0.025)
    assert "No trial is better than the base" in " ".join(search(trials=4, seed=1).result().conclusions)


def test_trials_behind_the_median_are_pruned_on_the_way(search: Any, runs: Runs) -> None:
    found: Sweep = search(trials=8, confirm_seeds=0, validate_every="20%").result()
    states = [trial.state for trial in found.trials]
    assert states[:5] == ["complete"] * 5
    assert "pruned" in states[5:]
    middle = median(trial.figure("val_bpb") for trial in found.trials[:5])
    first = found.trials[states.index("pruned")]
    assert planted(resolve("smoke", [f"train.optimizer.muon_lr={first.values[0]}"])) > middle
    assert "at step 8 (20%): val_bpb is" in first.reason


def test_two_objectives_give_a_front(search: Any, runs: Runs) -> None:
    found: Sweep = search(trials=4, objective="val_bpb,bytes", confirm_seeds=0).result()
    # All packages have the same size here, so the lowest score is the front.
    assert found.front == (min(found.trials, key=lambda trial: trial.figure("val_bpb")).number,)
    assert "No trial is better in both figures" in found.conclusions[1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"confirm_seeds": 1}, "confirm_seeds = 1: a test needs 2 or more"),
        ({"vary": ("train.optimizer.muon_rl=1:2",)}, "Did you mean train.optimizer.muon_lr"),
    ],
)
def test_bad_input_is_refused_before_the_base_is_run(
    api: str, runs: Runs, tmp_path: Path, asked: dict, message: str
) -> None:
    given = {"vary": (RATE,), **asked}
    with pytest.raises(SpecError, match=message):
        sweep("smoke", options=RunOptions(store=str(tmp_path)), return_state=True, **given).result()
    assert not runs.specs


def test_the_command_refuses_before_anything_starts(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["sweep", "--vary", "train.model.num_layers=0:4", "--store", str(tmp_path)]
    )
    assert result.exit_code == 2
    assert "num_layers = 0: must be at least 1" in result.stderr
    assert "server" not in result.stderr


def test_the_table_of_trials_opens_in_other_programs(search: Any) -> None:
    from flows.results.sweeps import csv_text, sweep_rows

    found: Sweep = search(RATE, LAYERS, trials=4, confirm_seeds=0).result()
    head, base, *rows = csv.reader(csv_text(found).splitlines())
    assert head[:4] == ["trial", "state", "train.optimizer.muon_lr", "train.model.num_layers"]
    assert base[:4] == ["base", "complete", "0.025", "3"]
    assert len(rows) == len(found.trials)
    for row, shown, trial in zip(rows, sweep_rows(found)[1:], found.trials, strict=True):
        assert row[2:4] == list(trial.values)
        assert (shown["muon_lr"], shown["num_layers"]) == trial.values
