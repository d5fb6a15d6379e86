"""Runs as a typed table: one row a run, or one row a training step, as CSV or Parquet.

Imports neither Prefect nor torch.
"""

import csv
import difflib
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.results.compared_page import write_file
from schemas.errors import SpecError
from schemas.introspect import describe_fields
from schemas.notes import RunNotes
from schemas.pipeline import PipelineReport
from stages.store.runs import choose_run
from stages.store.store import Store

log = logging.getLogger(__name__)

BEST = "val_bpb"
"""The column with the score that counts: sliding windows where they were scored."""

_SEED = "train.seed"
Read = Callable[[PipelineReport, RunNotes], Any]

_COLUMNS: dict[str, tuple[pa.DataType, Read]] = {
    "name": (pa.string(), lambda run, _: run.name),
    "run_id": (pa.string(), lambda run, _: run.run_id),
    "started": (pa.timestamp("s", "UTC"), lambda run, _: datetime.fromisoformat(run.created_at)),
    "preset": (pa.string(), lambda run, _: run.preset),
    "seed": (pa.int64(), lambda run, _: run.spec.train.seed),
    "tags": (pa.string(), lambda _, notes: ",".join(notes.tags)),
    "pinned": (pa.bool_(), lambda _, notes: notes.pinned),
    "notes": (pa.string(), lambda _, notes: "\n".join(note.text for note in notes.notes)),
    BEST: (pa.float64(), lambda run, _: _best(run)),
    "val_bpb_last": (pa.float64(), lambda run, _: run.val_bpb_last),
    "val_bpb_merged": (pa.float64(), lambda run, _: run.val_bpb_merged),
    "val_bpb_quantized": (pa.float64(), lambda run, _: run.val_bpb_quantized),
    "val_bpb_quantized_sliding": (pa.float64(), lambda run, _: run.val_bpb_quantized_sliding),
    "val_bpb_test_time_training": (pa.float64(), lambda run, _: run.val_bpb_test_time_training),
    "final_train_loss": (pa.float64(), lambda run, _: run.trained.final_train_loss),
    "num_parameters": (pa.int64(), lambda run, _: run.packed.num_parameters),
    "model_bytes": (pa.int64(), lambda run, _: run.size.model_bytes),
    "code_bytes": (pa.int64(), lambda run, _: run.size.code_bytes),
    "total_bytes": (pa.int64(), lambda run, _: run.size.total_bytes),
    "limit_bytes": (pa.int64(), lambda run, _: run.size.limit_bytes),
    "fits": (pa.bool_(), lambda run, _: run.size.fits),
    "num_warnings": (pa.int64(), lambda run, _: len(run.audit.warnings)),
    "steps": (pa.int64(), lambda run, _: run.trained.steps),
    "tokens_seen": (pa.int64(), lambda run, _: run.trained.tokens_seen),
    "training_seconds": (pa.float64(), lambda run, _: run.trained.timings.training_seconds),
    "tokens_per_second": (pa.float64(), lambda run, _: run.trained.timings.tokens_per_second),
    "seconds": (pa.float64(), lambda run, _: run.seconds),
}


def runs_table(runs: Sequence[PipelineReport], notes: Mapping[str, RunNotes]) -> pa.Table:
    """One row a run, in the order of `runs`: figures, notes, then each setting in which the runs differ.

    `notes`: by run id. A column of settings has integers, floats, booleans or text; a list is JSON text. A
    cell is null where a run has no value.
    """
    none = RunNotes()
    figures = {
        name: pa.array((read(run, notes.get(run.run_id, none)) for run in runs), kind)
        for name, (kind, read) in _COLUMNS.items()
    }
    return pa.table(figures | _changed_settings(runs))


def choose_runs(
    root: Path,
    reports: Sequence[PipelineReport],
    notes: Mapping[str, RunNotes],
    wanted: Sequence[str],
    tags: Sequence[str],
) -> list[PipelineReport]:
    """Those of `reports` that `wanted` names, or all if it is empty, which have all of `tags`.

    Raises SpecError for a name that means no run or several, and for a tag that no run has.
    """
    known = sorted({tag for item in notes.values() for tag in item.tags})
    for tag in tags:
        if tag not in known:
            raise SpecError(f"--tag = {tag}: no run has this tag. Tags: {', '.join(known) or 'none'}")
    named = {choose_run(root, reports, name).run_id for name in wanted}
    return [
        report
        for report in reports
        if (not wanted or report.run_id in named) and set(tags) <= set(notes[report.run_id].tags)
    ]


def sort_by(
    runs: Sequence[PipelineReport], notes: Mapping[str, RunNotes], column: str, descending: bool = False
) -> tuple[list[PipelineReport], list[Any]]:
    """The runs in the order of a column of `runs_table`, and its values; those without a value come last.

    Runs with equal values stay in their order. Raises SpecError for an unknown column.
    """
    table = runs_table(runs, notes)
    if column not in table.column_names:
        near = difflib.get_close_matches(column, table.column_names, n=3, cutoff=0.4) or [BEST]
        raise SpecError(
            f"--sort = {column}: no such column. Did you mean {' or '.join(near)}? A setting is a column "
            "if the runs differ in it"
        )
    values = table[column].to_pylist()
    with_value = [place for place, value in enumerate(values) if value is not None]
    without = [place for place, value in enumerate(values) if value is None]
    order = sorted(with_value, key=lambda place: values[place], reverse=descending) + without
    return [runs[place] for place in order], [values[place] for place in order]


def curves_table(store: Store, runs: Sequence[PipelineReport]) -> pa.Table:
    """One row a training step: `run`, `run_id`, `step` and the metrics of that step, run after run.

    The log names each run whose metrics are missing or damaged. Raises SpecError if no run has any.
    """
    tables = []
    for run in runs:
        ref = run.trained.metrics
        if problem := store.problem(ref):
            log.warning("%s has no curve: %s", run.name, problem)
            continue
        metrics = pq.read_table(store.fetch(ref))
        names = {"run": run.name, "run_id": run.run_id}
        columns = {name: pa.repeat(pa.scalar(text), metrics.num_rows) for name, text in names.items()}
        tables.append(pa.table(columns | dict(zip(metrics.column_names, metrics.columns, strict=True))))
    if not tables:
        raise SpecError("--curves: none of the runs has training metrics in the store")
    return pa.concat_tables(tables, promote_options="default")


def write_tables(table: pa.Table, csv_path: Path | None, parquet_path: Path | None) -> None:
    """Write the table to the files that are named.

    CSV is UTF-8 with a head; an empty cell is a missing value. Raises SpecError where it cannot be written.
    """
    if csv_path is not None:
        write_file(csv_path, csv_text(table), "--csv")
    if parquet_path is not None:
        content = io.BytesIO()
        pq.write_table(table, content)
        write_file(parquet_path, content.getvalue(), "--parquet")


def csv_text(table: pa.Table) -> str:
    """The table comma-separated, with a head and a line feed after each row.

    Not by pyarrow: it writes 1.0 as 1, so that readers would take a column of whole floats for integers.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    columns = [map(_cell, column.to_pylist()) for column in table.columns]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _best(run: PipelineReport) -> float:
    return run.val_bpb_quantized if (best := run.val_bpb_quantized_sliding) is None else best


def _changed_settings(runs: Sequence[PipelineReport]) -> dict[str, pa.Array]:
    """By dotted name, each setting in which the runs differ; the seed has a column of its own."""
    # Late QAT takes its grid from the quantizer: nobody chose that setting.
    told = [{info.name: info.value for info in describe_fields(run.spec.without_qat_grid())} for run in runs]
    names = dict.fromkeys(name for settings in told for name in settings if name != _SEED)
    columns = {name: [settings.get(name) for settings in told] for name in names}
    present = {name: [name in settings for settings in told] for name in names}
    return {
        name: _typed(values)
        for name, values in columns.items()
        if not all(present[name]) or any(value != values[0] for value in values)
    }


def _typed(values: Iterable[Any]) -> pa.Array:
    """Plain JSON values as integers, floats or booleans where all of them are, otherwise as text."""
    values = list(values)
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    if kinds and kinds <= {int, float}:
        return pa.array(values, pa.float64())
    texts = [
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for value in values
    ]
    return pa.array(texts, pa.string())
