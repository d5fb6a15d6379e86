"""The metrics of a training's steps: lines of a file while it trains, then a table that later stages read."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.errors import StageError
from schemas.held_out import CurvePoint
from schemas.train_settings import ScheduleSettings
from stages.core.schedule import Clock, progress_at

log = logging.getLogger(__name__)

Columns = dict[str, NDArray]
"""By column, as step, loss, lr_scale, seconds, grad_norm, qat_on, snapshot, context, muon_momentum; each
(steps,).
"""

LINES_NAME, TABLE_NAME = "metrics.jsonl", "metrics.parquet"
HELD_OUT_COLUMNS = ("val_nats", "val_bpb")
"""Score of held-out text after a step, nats a token and bits per byte; NaN at a step without one."""
_LATER_COLUMNS = (*HELD_OUT_COLUMNS, "context")
_TEXT = b"held_out_text"


def read_metrics(path: Path, columns: Sequence[str]) -> Columns:
    """The columns, each (steps,). Raises StageError for a file that is not what training writes.

    HELD_OUT_COLUMNS and context are NaN throughout where an earlier version wrote the file without them.
    """
    table = pq.read_table(path)
    there = set(table.column_names)
    missing = [name for name in columns if name not in there and name not in _LATER_COLUMNS]
    if missing or table.num_rows == 0:
        raise StageError(
            f"training metrics {path.name}: "
            f"{'no column ' + ', '.join(missing) if missing else 'no step in it'}"
        )
    unscored = np.full(table.num_rows, np.nan)
    return {name: table.column(name).to_numpy() if name in there else unscored for name in columns}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All rows so far of a training; none without a file. A line that is half written is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("left out a broken line of %s", path.name)
    return rows


def as_columns(rows: Sequence[dict[str, Any]]) -> Columns:
    """Rows of `read_lines` as columns, (steps,) each; what a row lacks is NaN."""
    names = dict.fromkeys((*(rows[0] if rows else ()), *HELD_OUT_COLUMNS))
    return {
        name: np.array([np.nan if (value := row.get(name)) is None else value for row in rows])
        for name in names
    }


def write_table(path: Path, rows: Sequence[dict[str, Any]], scored_text: dict[str, Any] | None) -> None:
    """metrics.parquet of the rows. `scored_text`: which text was scored; None where none was."""
    plain = [{name: row[name] for name in row if name not in HELD_OUT_COLUMNS} for row in rows]
    table = pa.Table.from_pylist(plain)
    for name in HELD_OUT_COLUMNS:
        table = table.append_column(name, pa.array([row.get(name) for row in rows], pa.float64()))
    if scored_text is not None:
        table = table.replace_schema_metadata({_TEXT: json.dumps(scored_text)})
    pq.write_table(table, path)


def scored_text_of(path: Path) -> dict[str, Any] | None:
    """What `write_table` was told of the text that was scored."""
    metadata = pq.read_schema(path).metadata or {}
    return json.loads(metadata[_TEXT]) if _TEXT in metadata else None


def curve_of(metrics: Columns, schedule: ScheduleSettings) -> tuple[CurvePoint, ...]:
    """The scores of held-out text in metrics with step, seconds and HELD_OUT_COLUMNS."""
    return tuple(
        CurvePoint(
            step=int(metrics["step"][at]),
            share=progress_at(Clock(int(metrics["step"][at]), float(metrics["seconds"][at])), schedule),
            val_nats=float(metrics["val_nats"][at]),
            val_bpb=float(metrics["val_bpb"][at]),
        )
        for at in np.flatnonzero(np.isfinite(metrics["val_bpb"].astype(float)))
    )
