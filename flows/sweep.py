"""Search for better settings, and say of the best only what further seeds show.

    fairway sweep --preset demo --vary train.optimizer.muon_lr=0.01:0.05:log --trials 20

Each trial is a run of the pipeline of its own, with a note and a tag of the sweep. The same command goes on
after an interruption, and repeats no finished trial.
"""

import base64
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from prefect import flow, tags
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows.inputs.form import Assignment, Options, Preset, with_empty_fields
from flows.inputs.parameters import checked_by
from flows.inputs.specs import Plan, as_overrides
from flows.inputs.vary import SweepPlan, assignments, plan_sweep
from flows.pipeline import check_run, pipeline
from flows.results.endings import reason
from flows.results.sweeps import compare_command, conclusions, sweep_rows
from flows.tasks.run_end import tell_end
from flows.tasks.showing import only_shown
from flows.tasks.tries import begin_try
from schemas.base import fingerprint
from schemas.errors import SpecError, StageError, first_line
from schemas.held_out import CurvePoint, parse_share
from schemas.pipeline import PipelineReport
from schemas.runtime import RunOptions
from schemas.stopped import StoppedRun
from schemas.sweep import Confirmation, Sweep, SweepTrial
from stages.report.sweep_plot import sweep_svg
from stages.store.notes import add_note, add_tags, notes_of
from stages.store.runs import FIGURE_STAGES, list_reports, load_report
from stages.store.stopped import load_stopped
from stages.store.store import Store, open_store
from stages.sweeps.pruning import median_rules
from stages.sweeps.search import Asked, Search, SearchSettings, open_search
from stages.sweeps.verdict import candidate, confirm, fresh_seeds
from stages.training.metrics import HELD_OUT_COLUMNS, curve_of, read_metrics

log = logging.getLogger(__name__)

VaryText = Annotated[str, Field(pattern=r"^\s*[a-z_][a-z0-9_]*(\.[a-z0-9_]+)+(\s*\+[^=]+)?\s*=.*[,:]")]
Objective = Literal["val_bpb", "bytes", "val_bpb,bytes"]


def _run_name() -> str:
    return f"{flow_run.parameters['preset']}-sweep"


def _check(given: Mapping[str, Any], options: RunOptions, store: Store) -> None:
    names = ("preset", "overrides", "vary", "objective", "confirm_seeds")
    check_run(plan_sweep(*(given[name] for name in names)).base(), options, store)


@checked_by(_check)
@with_empty_fields
@flow(
    name="sweep",
    flow_run_name=_run_name,
    persist_result=False,
    on_completion=[tell_end],
    on_failure=[tell_end],
)
def sweep(
    preset: Preset = "demo",
    vary: tuple[VaryText, ...] = (),
    trials: Annotated[int, Field(ge=1, le=10_000)] = 20,
    objective: Objective = "val_bpb",
    seed: Annotated[int, Field(ge=0)] = 0,
    confirm_seeds: Annotated[int, Field(ge=0, le=100)] = 3,
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05,
    overrides: tuple[Assignment, ...] = (),
    options: Options = None,
) -> Sweep:
    """Train trials with other settings, and test the best one against the preset with further seeds.

    Args:
        preset: What the trials start from; itself the base that they are compared with.
        vary: Settings that vary, one an entry: train.optimizer.muon_lr=0.01:0.05:log (a range, here on a
            logarithmic scale), train.model.num_layers=4,6,8 (a list).
        trials: Trials in all. More of them go on where fewer ended.
        objective: What is to be low: bits per byte, bytes of the package, or both.
        seed: Seed of the suggestions. The same seed gives the same ones.
        confirm_seeds: Further seeds of base and best trial, for the test that decides whether the trial is
            announced; 0: no test.
        alpha: The p below which the trial is announced, between 0 and 1.
        overrides: Settings of base and trials that differ from the preset, as dotted.name=value.
        options: Where and how the stages run; with validate_every, trials that are worse than the median of
            the earlier ones are pruned.
    """
    options = begin_try(options)
    plan = plan_sweep(preset, overrides, vary, objective, confirm_seeds)
    for warning in plan.warnings:
        log.warning("%s", warning)
    store = open_store(options)
    base_report, base = _base(store, plan, options)
    label = _label(preset, plan, base_report, seed)
    runs = SweepRuns(store, options, label, _of_sweep(store, label))
    runs.mark(base_report, "the base")
    settings = SearchSettings(label, plan.variations, plan.objectives, seed)
    with open_search(store.root / "sweeps" / label, settings) as search:
        _run_trials(search, plan, runs, trials)
        found = Sweep(
            label=label,
            preset=preset,
            objectives=plan.objectives,
            seed=seed,
            variations=plan.variations,
            base=base,
            trials=tuple(search.trials()),
            front=search.front(),
        )
    found = _concluded(found, plan, runs, confirm_seeds, alpha)
    with only_shown("table and plot of the sweep"):
        _publish(found)
    if not found.complete():
        raise StageError(f"no trial is complete. The first one: {found.trials[0].reason}")
    return found


@dataclass(frozen=True)
class SweepRuns:
    """Runs of the pipeline for one sweep: each gets its tag and a note."""

    store: Store
    options: RunOptions
    label: str
    earlier: dict[str, PipelineReport]
    """Runs of the sweep that an interrupted call has made, by the fingerprint of their settings."""

    @property
    def tag(self) -> str:
        return f"sweep:{self.label}"

    def run(
        self, plan: Plan, trial: SweepTrial, what: str, stop_if: str = ""
    ) -> tuple[SweepTrial, list[CurvePoint]]:
        """`trial` with its outcome, and the held-out scores of its training.

        Raises StageError where the run was stopped from outside, so that it has no outcome.
        """
        if (report := self.earlier.get(fingerprint(plan.spec))) is not None:
            return _outcome_of(report, trial), _curve(self.store, report)
        options = self.options.derive(stop_if=stop_if) if stop_if else self.options
        with tags(self.tag):
            state = pipeline(plan.preset, overrides=as_overrides(plan), options=options, return_state=True)
        _require_outcome(state)
        run_id = str(state.state_details.flow_run_id)
        if (report := load_report(self.store.root, run_id)) is not None:
            self.mark(report, what)
            return _outcome_of(report, trial), _curve(self.store, report)
        stopped = load_stopped(self.store.root / "runs" / run_id)
        why = first_line(stopped.reason if stopped else reason(state.message) or state.name or "failed")
        why = why.partition(". Its metrics stay")[0]  # the advice is for a run that goes on alone
        outcome = {"state": "pruned" if stopped else "failed", "reason": why, "run_id": run_id}
        return trial.derive(**outcome, run_name=plan.label), _curve(self.store, stopped) if stopped else []

    def mark(self, report: PipelineReport, what: str) -> None:
        """Give a run the sweep's tag, and a note that says what it is in the sweep."""
        add_tags(self.store, report, [self.tag])
        add_note(self.store, report, f"sweep {self.label}: {what}")


def _base(store: Store, plan: SweepPlan, options: RunOptions) -> tuple[PipelineReport, SweepTrial]:
    """The run without any variation. Raises StageError if it leaves no report: no trial could be compared."""
    base = plan.base()
    state = pipeline(base.preset, overrides=as_overrides(base), options=options, return_state=True)
    _require_outcome(state)
    report = load_report(store.root, str(state.state_details.flow_run_id))
    if report is None:
        why = reason(state.message)
        raise StageError(f"the base failed, so that no trial can be compared with it: {why}")
    # A base over the limit of its package still is what trials are compared with.
    outcome = _outcome_of(report, SweepTrial(number=0, state="complete", values=plan.base_values()))
    return report, outcome.derive(state="complete")


def _run_trials(search: Search, plan: SweepPlan, runs: SweepRuns, trials: int) -> None:
    """Ask for trials and run them until there are enough."""
    planned = search.planned(trials)
    if done := len(search.trials()):
        log.info("sweep %s: %d of %d trials are done", runs.label, done, planned)
    if runs.options.validate_every and len(plan.objectives) > 1:
        log.warning("validate_every: no trial is pruned, because pruning knows one objective only")
    while (asked := search.ask(trials)) is not None:
        settings = ", ".join(assignments(plan.variations, asked.values))
        log.info("trial %d of %d: %s", asked.number, planned, settings)
        outcome, curve = _trial(search, asked, plan, runs, settings)
        search.tell(asked, outcome, curve)
        log.info("trial %d: %s", asked.number, _in_words(outcome))


def _trial(
    search: Search, asked: Asked, plan: SweepPlan, runs: SweepRuns, settings: str
) -> tuple[SweepTrial, list[CurvePoint]]:
    """The outcome of one trial. One that is refused, or fails, is a failed trial."""
    trial = SweepTrial(number=asked.number, state="complete", values=asked.values)
    if (known := search.known(asked.values)) is not None:
        again = f"as trial {known.number}" + (f": {known.reason}" if known.reason else "")
        return known.derive(number=asked.number, reason=again), []
    try:
        chosen = plan.with_values(asked.values)
        return runs.run(
            chosen, trial, f"trial {asked.number}: {settings}", _stop_rules(search, plan, runs.options)
        )
    except SpecError as error:  # these values do not go together
        return trial.derive(state="failed", reason=first_line(error)), []


def _stop_rules(search: Search, plan: SweepPlan, options: RunOptions) -> str:
    """The user's rules, and those that prune a trial which is worse than the median of the earlier ones."""
    if not options.validate_every or len(plan.objectives) > 1:
        return options.stop_if or ""
    pruning = median_rules(search.curves(), parse_share(options.validate_every))
    return "; ".join([*([options.stop_if] if options.stop_if else []), *map(str, pruning)])


def _require_outcome(state: State) -> None:
    """Raises StageError for a run that something from outside has ended."""
    if state.is_cancelled() or state.is_crashed():
        raise StageError(f"a run of the sweep was stopped ({state.name}); the same command goes on with it")


def _outcome_of(report: PipelineReport, trial: SweepTrial) -> SweepTrial:
    size = report.size
    over = f"{-size.margin_bytes:,} bytes over the limit of {size.limit_bytes:,}"
    return trial.derive(
        val_bpb=report.val_bpb_quantized_sliding or report.val_bpb_quantized,
        num_bytes=size.total_bytes,
        run_id=report.run_id,
        run_name=report.name,
        **({} if size.fits else {"state": "failed", "reason": over}),
    )


def _curve(store: Store, run: PipelineReport | StoppedRun) -> list[CurvePoint]:
    """The held-out scores of a run's training, if it has some and they are still there."""
    ref = run.metrics if isinstance(run, StoppedRun) else run.trained.metrics
    if next(store.problems(ref), None) is not None:
        return []
    columns = read_metrics(store.fetch(ref), ("step", "seconds", *HELD_OUT_COLUMNS))
    return list(curve_of(columns, run.spec.train.schedule))


def _in_words(trial: SweepTrial) -> str:
    if trial.state != "complete":
        return f"{trial.state}: {trial.reason}"
    return f"{trial.val_bpb:.5f} bits per byte, {trial.num_bytes:,} bytes"


def _label(preset: str, plan: SweepPlan, base: PipelineReport, seed: int) -> str:
    """`demo-5e884898`: the preset, and what decides suggestions and outcomes.

    The keys of the base stand for its settings, text, code, libraries and machine: outcomes made by others
    are not continued.
    """
    keys = {stage.stage: stage.key for stage in base.stages if stage.stage in (*FIGURE_STAGES, "check_size")}
    varied = [variation.model_dump(mode="json") for variation in plan.variations]
    whole = {"keys": keys, "vary": varied, "objectives": plan.objectives, "seed": seed}
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', preset)}-{fingerprint(whole)[:8]}"


def _of_sweep(store: Store, label: str) -> dict[str, PipelineReport]:
    """The finished runs with the sweep's tag, by the fingerprint of their settings."""
    reports = {report.run_id: report for report in list_reports(store.root)}
    notes = notes_of(store.root, reports)
    return {
        fingerprint(report.spec): report
        for run_id, report in reports.items()
        if f"sweep:{label}" in notes[run_id].tags
    }


def _concluded(found: Sweep, plan: SweepPlan, runs: SweepRuns, count: int, alpha: float) -> Sweep:
    """The sweep with its test, if a trial is worth one, and its sentences."""
    best, test, problem = candidate(found), None, ""
    if best is not None:
        test, problem = _tested(found, best, plan, runs, count, alpha)
    announced = best.number if best is not None and test is not None and test.passed else None
    found = found.derive(confirmation=test, announced=announced)
    said = conclusions(found, best, problem)
    if command := compare_command(found):
        said.append(f"Side by side: {command}")
    return found.derive(conclusions=tuple(said))


def _tested(
    found: Sweep, best: SweepTrial, plan: SweepPlan, runs: SweepRuns, count: int, alpha: float
) -> tuple[Confirmation | None, str]:
    """The test of the best trial, or why there is none."""
    if count == 0:
        return None, "There was no test (confirm_seeds = 0)"
    pairs: list[tuple[SweepTrial, SweepTrial]] = []
    base, chosen = plan.base(), plan.with_values(best.values)
    seeds = fresh_seeds(base.spec.train.seed, count)
    for seed in seeds:
        log.info(
            "test of trial %d against the base: seed %d (%d of %d)", best.number, seed, len(pairs) + 1, count
        )
        theirs, _ = runs.run(base.with_seed(seed), found.base, f"the base, seed {seed}")
        ours, _ = runs.run(chosen.with_seed(seed), best, f"trial {best.number}, seed {seed}")
        for what, run in (("the base", theirs), (f"trial {best.number}", ours)):
            if run.state != "complete":
                return None, f"There is no test: {what} with seed {seed} {run.state} ({run.reason})"
        pairs.append((ours, theirs))
    ours_of_all, theirs_of_all = zip(*pairs, strict=True)
    return confirm(found, best, ours_of_all, theirs_of_all, alpha, seeds), ""


def _publish(found: Sweep) -> None:
    lines = [f"# Sweep {found.label}", "", *(f"- {sentence}" for sentence in found.conclusions)]
    if found.complete():
        picture = base64.b64encode(sweep_svg(found).encode()).decode()
        lines += ["", f"![trials](data:image/svg+xml;base64,{picture})"]
    create_markdown_artifact(key="sweep", markdown="\n".join(lines), description=f"sweep {found.label}")
    create_table_artifact(key="trials", table=sweep_rows(found), description=f"trials of {found.label}")
