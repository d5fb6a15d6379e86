"""The metrics of a training's steps, as the stages after it read them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.errors import StageError

Columns = dict[str, NDArray]
"""By column, as step, loss, lr_scale, seconds, grad_norm, qat_on, snapshot, muon_momentum; each (steps,)."""


def read_metrics(path: Path, columns: Sequence[str]) -> Columns:
    """The columns, each (steps,). Raises StageError for a file that is not what training writes."""
    table = pq.read_table(path)
    missing = [name for name in columns if name not in table.column_names]
    if missing or table.num_rows == 0:
        raise StageError(
            f"training metrics {path.name}: "
            f"{'no column ' + ', '.join(missing) if missing else 'no step in it'}"
        )
    return {name: table.column(name).to_numpy() for name in columns}
