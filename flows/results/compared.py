"""Runs against the first of them: settings, stages, figures, verdicts and seeds, and the tables of these.

Imports neither Prefect nor torch.
"""

import json
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flows.results.reasons import parts_of_record, read_figures, reasons
from schemas.base import fingerprint
from schemas.compare import (
    ComparedFigure,
    ComparedRun,
    ComparedRuns,
    ComparedSetting,
    ComparedStage,
    ComparedVerdict,
)
from schemas.errors import SpecError
from schemas.evaluate import sliding_of, windows_of
from schemas.introspect import describe_fields, number
from schemas.pipeline import PipelineReport
from schemas.stages import STAGES, Stage
from schemas.stopped import StoppedRun
from stages.report.rows import Table
from stages.store.runs import LAST, choose_run, records_of, seeds_of, without_seed
from stages.store.stopped import list_stopped
from stages.store.store import Store

MAX_RUNS = len(string.ascii_uppercase)
RECORD_GONE = "its record is gone from the store"
NOT_RUN = "did not run"
UNKNOWN_SPREAD = "one seed each: the spread is unknown"
_ABSENT, _NOTHING = "–", "none"

AnyRun = PipelineReport | StoppedRun
"""A run that has a report, or one that a rule ended while it trained."""

TEST_TIME = "val_bpb test-time training"
"""The figure that a comparison has only where a run has it."""

Figure = tuple[str, str, int, Callable[[PipelineReport], float | None]]
"""Name, unit, decimals, and where it is found."""

FIGURES: tuple[Figure, ...] = (
    ("val_bpb last iterate", "bits per byte", 5, lambda run: run.val_bpb_last),
    ("val_bpb merged", "bits per byte", 5, lambda run: run.val_bpb_merged),
    ("val_bpb quantized", "bits per byte", 5, lambda run: run.val_bpb_quantized),
    ("val_bpb quantized, sliding", "bits per byte", 5, lambda run: run.val_bpb_quantized_sliding),
    (TEST_TIME, "bits per byte", 5, lambda run: run.val_bpb_test_time_training),
    ("gap quantized − merged", "bits per byte", 5, lambda run: run.val_bpb_quantized - run.val_bpb_merged),
    ("training loss, last tenth", "nats a token", 4, lambda run: run.trained.final_train_loss),
    ("parameters", "", 0, lambda run: run.packed.num_parameters),
    ("model", "bytes", 0, lambda run: run.size.model_bytes),
    ("code", "bytes", 0, lambda run: run.size.code_bytes),
    ("artifact", "bytes", 0, lambda run: run.size.total_bytes),
    ("training steps", "", 0, lambda run: run.trained.steps),
    ("tokens seen", "", 0, lambda run: run.trained.tokens_seen),
    ("training time", "seconds", 1, lambda run: run.trained.timings.training_seconds),
    ("training speed", "tokens/s", 0, lambda run: run.trained.timings.tokens_per_second),
    ("all stages, when computed", "seconds", 1, lambda run: sum(s.computed_seconds for s in run.stages)),
)


def find_runs(store: Store, finished: Sequence[PipelineReport], wanted: Iterable[str]) -> list[AnyRun]:
    """The run that each word names, as `find_run` does, among `finished` and the runs that a rule ended."""
    known: list[AnyRun] = [*finished, *list_stopped(store.root)]
    known.sort(key=lambda run: run.created_at)
    root = store.runs_root()
    return [choose_run(root, list(finished) if word == LAST else known, word) for word in wanted]


def compare_runs(store: Store, reports: Sequence[AnyRun], finished: Sequence[PipelineReport]) -> ComparedRuns:
    """`reports` side by side, the others against the first. `finished`: every run of the store, the newest
    last, among which other seeds are looked for.

    Raises SpecError for fewer than two runs, or more than there are letters.
    """
    if not 2 <= len(reports) <= MAX_RUNS:
        raise SpecError(f"RUN: {len(reports)} named; name 2 to {MAX_RUNS} runs. `fairway runs` lists all")
    labels = string.ascii_uppercase[: len(reports)]
    runs = tuple(
        ComparedRun(
            label=label,
            name=report.name,
            run_id=report.run_id,
            created_at=report.created_at,
            preset=report.preset,
            seed=report.spec.train.seed,
        )
        for label, report in zip(labels, reports, strict=True)
    )
    return ComparedRuns(
        runs=runs,
        settings=_settings(reports),
        stages=_stages(store, reports),
        figures=tuple(
            ComparedFigure(
                name=name,
                unit=unit,
                decimals=digits,
                values=tuple(None if isinstance(report, StoppedRun) else find(report) for report in reports),
            )
            for name, unit, digits, find in FIGURES
            if name != TEST_TIME or any(find(run) for run in reports if isinstance(run, PipelineReport))
        ),
        verdicts=_verdicts(reports),
        conclusions=tuple(_conclusions(store, labels, reports, finished)),
    )


def tables(found: ComparedRuns, everything: bool = False) -> list[Table]:
    """Runs, settings, stages, figures and verdicts; with `everything` also what is equal."""
    return [
        runs_table(found),
        settings_table(found, everything),
        stages_table(found),
        figures_table(found),
        verdicts_table(found, everything),
    ]


def runs_table(found: ComparedRuns) -> Table:
    rows = tuple((run.label, run.name, run.run_id[:8], run.created_at) for run in found.runs)
    columns = ("", "run", "id", "started")
    return Table("Runs", columns, rows, columns)


def settings_table(found: ComparedRuns, everything: bool = False) -> Table:
    """The settings that differ; the title counts the others."""
    shown = [item for item in found.settings if everything or item.differs]
    rows = tuple(
        (
            item.name,
            *(_value(value, there) for value, there in zip(item.values, item.present, strict=True)),
            item.unit,
        )
        for item in shown
    )
    count = sum(item.differs for item in found.settings)
    title = f"Settings: {count} differ, {len(found.settings) - count} are equal"
    columns = ("setting", *found.labels, "unit")
    marks = tuple("bad" if everything and item.differs else "" for item in shown)
    return Table(title, columns, rows, columns, marks)


def stages_table(found: ComparedRuns) -> Table:
    """For each stage whether its key is that of the first run, or why not."""
    first, *others = found.labels
    rows = tuple(
        (
            stage.stage,
            (stage.run_keys[0] or _ABSENT)[:12],
            *("; ".join(why) or "same" for why in stage.reasons),
        )
        for stage in found.stages
    )
    columns = ("stage", f"key of {first}", *(f"{label}: same key, or what differs" for label in others))
    return Table("Stages", columns, rows, columns)


def figures_table(found: ComparedRuns) -> Table:
    """Each figure, and its difference from the first run."""
    first, *others = found.labels
    columns = ("figure", first, *(name for label in others for name in (label, f"{label} − {first}")), "unit")
    rows = tuple(
        (item.name, *(cell for at in range(len(item.values)) for cell in _figure_cells(item, at)), item.unit)
        for item in found.figures
    )
    return Table("Figures", columns, rows, ("figure", "unit"))


def verdicts_table(found: ComparedRuns, everything: bool = False) -> Table:
    """The audit's verdicts that changed; the title counts the others."""
    rows = tuple(
        (item.title, *(verdict or _ABSENT for verdict in item.verdicts))
        for item in found.verdicts
        if everything or item.differs
    )
    count = sum(item.differs for item in found.verdicts)
    columns = ("technique or rule", *found.labels)
    title = f"Verdicts of the audit: {count} differ, {len(found.verdicts) - count} are equal"
    return Table(title, columns, rows, columns)


def csv_rows(found: ComparedRuns, everything: bool = False) -> list[list[str]]:
    """A head, then a row for each setting, stage, figure and verdict: kind, name, unit, a column a run.

    Numbers have all their digits. A cell is empty where a run has no value.
    """
    head = ["kind", "name", "unit", *(f"{run.label} {run.name}" for run in found.runs)]
    settings = [
        [
            "setting",
            item.name,
            item.unit,
            *(_raw(value) if there else "" for value, there in zip(item.values, item.present, strict=True)),
        ]
        for item in found.settings
        if everything or item.differs
    ]
    stages = [["key", stage.stage, "", *(key or "" for key in stage.run_keys)] for stage in found.stages]
    why = [
        ["why not the same key", stage.stage, "", "", *("; ".join(why) for why in stage.reasons)]
        for stage in found.stages
        if any(stage.reasons)
    ]
    figures = [["figure", item.name, item.unit, *map(_raw, item.values)] for item in found.figures]
    verdicts = [
        ["verdict", item.key, "", *(verdict or "" for verdict in item.verdicts)]
        for item in found.verdicts
        if everything or item.differs
    ]
    return [head, *settings, *stages, *why, *figures, *verdicts]


def _settings(reports: Sequence[AnyRun]) -> tuple[ComparedSetting, ...]:
    # What late QAT takes over from the quantizer is no setting that anybody chose.
    fields = [{info.name: info for info in describe_fields(run.spec.without_qat_grid())} for run in reports]
    names = dict.fromkeys(name for told in fields for name in told)
    return tuple(
        ComparedSetting(
            name=name,
            unit=next(told[name].unit for told in fields if name in told),
            values=tuple(told[name].value if name in told else None for told in fields),
            present=tuple(name in told for told in fields),
        )
        for name in names
    )


def _stages(store: Store, reports: Sequence[AnyRun]) -> tuple[ComparedStage, ...]:
    keys = [{stage.stage: stage.key for stage in report.stages} for report in reports]
    records = [records_of(store, report) for report in reports]

    def why(name: str, other: int) -> tuple[str, ...]:
        if keys[0].get(name) == keys[other].get(name):
            return ()
        if name not in keys[0] or name not in keys[other]:
            return (NOT_RUN,)
        before, after = records[0].get(name), records[other].get(name)
        if before is None or after is None:
            return (RECORD_GONE,)
        stage = STAGES[name]
        told = (_read_figures(stage, reports[at]) for at in (0, other))
        parts = (
            parts_of_record(stage, made, figures) for made, figures in zip((before, after), told, strict=True)
        )
        return tuple(reasons(*parts)) or ("another version of Fairway's keys",)

    return tuple(
        ComparedStage(
            stage=name,
            run_keys=tuple(told.get(name) for told in keys),
            reasons=tuple(why(name, other) for other in range(1, len(reports))),
        )
        for name in STAGES
        if any(name in told for told in keys)
    )


def _read_figures(stage: Stage, run: AnyRun) -> dict[str, str]:
    return {} if isinstance(run, StoppedRun) else read_figures(stage, run.by_name())


def _verdicts(reports: Sequence[AnyRun]) -> tuple[ComparedVerdict, ...]:
    findings = [() if isinstance(report, StoppedRun) else report.audit.findings for report in reports]
    if sum(map(bool, findings)) < 2:
        return ()
    told = [{finding.key: finding for finding in found} for found in findings]
    titles = {finding.key: finding.title for found in findings for finding in found}
    return tuple(
        ComparedVerdict(
            key=key,
            title=title,
            verdicts=tuple(found[key].verdict if key in found else None for found in told),
        )
        for key, title in titles.items()
    )


def _conclusions(
    store: Store,
    labels: Iterable[str],
    reports: Sequence[AnyRun],
    finished: Sequence[PipelineReport],
) -> Iterable[str]:
    """A sentence for each run that a rule ended, and for each other one after the first: whether seeds tell
    it from the first.
    """
    pairs = list(zip(labels, reports, strict=True))
    yield from (f"{label}: {run.reason}." for label, run in pairs if isinstance(run, StoppedRun))
    whole = [(label, run) for label, run in pairs if not isinstance(run, StoppedRun)]
    if not whole:
        return
    (first, report), *others = whole
    seeds = seeds_of(store, report, finished)
    for label, other in others:
        pair = f"{first} and {label}: "
        if report.run_id == other.run_id:
            yield f"{pair}the same run."
        elif not _same_text(report, other):
            yield f"{pair}the validation texts differ, so their bits per byte do not compare."
        elif kinds := _other_scores(report, other):
            yield f"{pair}{kinds}"
        elif without_seed(report.spec) == without_seed(other.spec):
            yield f"{pair}{_of_one_configuration(seeds, report, other)}"
        else:
            yield f"{pair}{_welch(first, seeds, label, seeds_of(store, other, finished))}"


def _other_scores(report: PipelineReport, other: PipelineReport) -> str:
    """Which scores are of two kinds, in a sentence; empty where all compare."""
    settings = [run.spec.evaluate.scoring for run in (report, other)]
    for what, words in (("scores", windows_of), ("sliding scores", sliding_of)):
        one, two = map(words, settings)
        if one and two and one != two:
            return f"the {what} are of two kinds, {one} and {two}, so they do not compare."
    return ""


def _of_one_configuration(
    seeds: Sequence[PipelineReport], report: PipelineReport, other: PipelineReport
) -> str:
    from stages.seeds.statistics import summarize  # scipy, which takes a second

    summary = summarize([_best(run) for run in seeds])
    what = "the same settings" + ("" if _seed(report) == _seed(other) else " but for the seed")
    if summary is None:
        return f"{what}; {UNKNOWN_SPREAD}."
    return (
        f"{what}. Over {summary.count} seeds in the store the score has the mean {summary.mean:.5f} and "
        f"the standard deviation {summary.std:.5f} bits per byte."
    )


def _welch(first: str, seeds: Sequence[PipelineReport], label: str, others: Sequence[PipelineReport]) -> str:
    few = [
        f"{name} has {len(group)} seed{'s' if len(group) > 1 else ''}"
        for name, group in ((first, seeds), (label, others))
    ]
    if len(seeds) == len(others) == 1:
        return f"{UNKNOWN_SPREAD}."
    if min(len(seeds), len(others)) == 1:
        return f"{' and '.join(few)} in the store: with one seed the spread is unknown."
    from stages.seeds.statistics import beats_ledger  # scipy, which takes a second

    tested = beats_ledger([_best(run) for run in others], [_best(run) for run in seeds], 0.0, 0.05, 1)
    assert tested is not None  # both have two seeds
    low, high = -tested.high, -tested.low
    said = f"{label} is better" if high < 0 else f"{label} is worse" if low > 0 else "no difference is shown"
    return (
        f"{' and '.join(few)}. {label} − {first} is {-tested.better_by:+.5f} bits per byte, 95 % interval "
        f"{low:+.5f} to {high:+.5f} (Welch): {said}."
    )


def _best(run: PipelineReport) -> float:
    """The score that counts: sliding windows where they were scored."""
    return run.val_bpb_quantized if (best := run.val_bpb_quantized_sliding) is None else best


def _seed(run: PipelineReport) -> int:
    return run.spec.train.seed


def _same_text(report: PipelineReport, other: PipelineReport) -> bool:
    """Whether both are scored over the same bytes. Shards of one tokenizer are compared themselves, text of
    two tokenizers by its source and length.
    """
    one, two = report.tokenized, other.tokenized
    if fingerprint(one.val_shards) == fingerprint(two.val_shards):
        return True
    sources = [fingerprint((run.spec.tokenize.corpus, run.spec.tokenize.split)) for run in (report, other)]
    return sources[0] == sources[1] and one.val.utf8_bytes == two.val.utf8_bytes is not None


def _figure_cells(item: ComparedFigure, at: int) -> list[str]:
    value, first = item.values[at], item.values[0]
    cell = _ABSENT if value is None else f"{value:,.{item.decimals}f}"
    if at == 0:
        return [cell]
    if value is None or first is None:
        return [cell, _ABSENT]
    change = value - first
    # −0.00000 would read like a difference.
    return [cell, f"{change:+,.{item.decimals}f}" if round(change, item.decimals) else "0"]


def _value(value: Any, there: bool) -> str:
    return _ABSENT if not there else _NOTHING if value is None else number(value)


def _raw(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
