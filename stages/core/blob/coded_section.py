"""The blob's section of coded matrices: their grids, the spread of their codes, the tables, and one rANS
stream for all codes.

    sizes    lowest class, uint16 | tables, uint16 | stream bytes, uint32
    steps    one float32 a matrix, in byte planes
    grids    row exponents of all matrices, int8 | column exponents
    spreads  row class + row exponent of all matrices, int8 | the same of columns
    tables   as in `symbol_models`
    stream   as in `rans`; matrices in the header's order, each row by row

Class and exponent are stored as their sum, because the sum varies less than its parts.
Nothing when there is no coded matrix. All numbers are little-endian.
"""

import math

import numpy as np
import torch

from stages.core.blob.rans import RansError, decode, encode, end_bytes
from stages.core.blob.symbol_models import (
    CodeTables,
    ModelTableError,
    SpreadClasses,
    fit_tables,
    spread_classes,
    tables_from_bytes,
    tables_to_bytes,
)
from stages.core.quantizers.coded_grid import CODE_LIMIT, CodedGrid

_SIZES_BYTES = 8
_MOST_TABLES = 64
_ZERO_SYMBOL = np.uint16(CODE_LIMIT + 1)


class CodedSectionError(ValueError):
    """The section is not what an encoder writes."""


def coded_to_bytes(matrices: list[tuple[np.ndarray, CodedGrid]]) -> bytes:
    """The section of `matrices`: codes int16 (R, C), each with its grid. Equal codes give equal bytes."""
    if not matrices:
        return b""
    spreads, tables = _models(matrices)
    models = np.concatenate([spread.models(tables.lowest, len(tables)) for spread in spreads])
    symbols = np.concatenate([codes.reshape(-1) for codes, _ in matrices]).view(np.uint16) + _ZERO_SYMBOL
    stream = encode(symbols, models, tables.frequencies)
    return _before_stream(matrices, spreads, tables, len(stream)) + stream


def coded_without_stream(matrices: list[tuple[np.ndarray, CodedGrid]]) -> tuple[bytes, int]:
    """The section up to its stream, and how many bytes the stream would have, to a few in ten thousand.

    Codes are counted and not coded, which takes a fraction of the time.
    """
    if not matrices:
        return b"", 0
    spreads, tables = _models(matrices)
    stream_bytes = round(tables.code_bytes() + end_bytes(sum(codes.size for codes, _ in matrices)))
    return _before_stream(matrices, spreads, tables, stream_bytes), stream_bytes


def _models(matrices: list[tuple[np.ndarray, CodedGrid]]) -> tuple[list[SpreadClasses], CodeTables]:
    spreads = [spread_classes(codes) for codes, _ in matrices]
    return spreads, fit_tables(
        [(codes, spread) for (codes, _), spread in zip(matrices, spreads, strict=True)]
    )


def _before_stream(
    matrices: list[tuple[np.ndarray, CodedGrid]],
    spreads: list[SpreadClasses],
    tables: CodeTables,
    stream_bytes: int,
) -> bytes:
    steps = np.array([grid.step for _, grid in matrices], "<f4").view(np.uint8).reshape(-1, 4).T.tobytes()
    rows, columns = (
        [grid.rows.numpy() for _, grid in matrices],
        [grid.columns.numpy() for _, grid in matrices],
    )
    vectors = [
        *rows,
        *columns,
        *(spread.rows + row for spread, row in zip(spreads, rows, strict=True)),
        *(spread.columns + column for spread, column in zip(spreads, columns, strict=True)),
    ]
    sizes = np.array([tables.lowest, len(tables)], "<u2").tobytes()
    return b"".join(
        [
            sizes,
            np.array([stream_bytes], "<u4").tobytes(),
            steps,
            *(vector.tobytes() for vector in vectors),
            tables_to_bytes(tables.frequencies),
        ]
    )


def coded_from_bytes(
    section: memoryview, shapes: list[tuple[int, int]]
) -> tuple[list[tuple[torch.Tensor, CodedGrid]], int]:
    """Codes int16 (R, C) and grid of each matrix of `shapes`, and the bytes used. Raises CodedSectionError.

    Memory is a fixed multiple of the numbers that the shapes declare: callers bound those.
    """
    if not shapes:
        return [], 0
    num_rows, num_columns = sum(shape[0] for shape in shapes), sum(shape[1] for shape in shapes)
    fixed = _SIZES_BYTES + 4 * len(shapes) + 2 * (num_rows + num_columns)
    if len(section) < fixed:
        raise CodedSectionError(
            f"{len(section):,} bytes are left for coded matrices that need more than {fixed:,}"
        )
    lowest, num_tables = (int(value) for value in np.frombuffer(section, "<u2", 2))
    stream_bytes = int(np.frombuffer(section, "<u4", 1, offset=4)[0])
    steps = np.ascontiguousarray(
        np.frombuffer(section, np.uint8, 4 * len(shapes), _SIZES_BYTES).reshape(4, -1).T
    ).view("<f4")[:, 0]
    if not 0 < num_tables <= _MOST_TABLES or lowest >= _MOST_TABLES:
        raise CodedSectionError(
            f"declares {num_tables} tables from class {lowest}; 1 to {_MOST_TABLES} are taken"
        )
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise CodedSectionError("a matrix has a step that is no positive finite number")
    vectors = np.frombuffer(section, np.int8, 2 * (num_rows + num_columns), _SIZES_BYTES + 4 * len(shapes))
    rows, columns, row_sums, column_sums = np.split(vectors, np.cumsum([num_rows, num_columns, num_rows]))
    try:
        tables, table_bytes = tables_from_bytes(section[fixed:], num_tables)
        end = fixed + table_bytes + stream_bytes
        if end > len(section):
            raise CodedSectionError(
                f"declares a stream of {stream_bytes:,} bytes, {len(section) - fixed - table_bytes:,} are "
                "left"
            )
        grids, models = [], []
        row, column = 0, 0
        for step, (height, width) in zip(steps, shapes, strict=True):
            across, down = slice(row, row + height), slice(column, column + width)
            grids.append(
                CodedGrid(
                    float(step), torch.from_numpy(rows[across].copy()), torch.from_numpy(columns[down].copy())
                )
            )
            models.append(
                SpreadClasses(row_sums[across] - rows[across], column_sums[down] - columns[down]).models(
                    lowest, num_tables
                )
            )
            row, column = row + height, column + width
        symbols = decode(section[fixed + table_bytes : end], np.concatenate(models), tables)
    except (ModelTableError, RansError) as error:
        raise CodedSectionError(str(error)) from error
    codes = torch.from_numpy((symbols - _ZERO_SYMBOL).view(np.int16))
    parts = codes.split([math.prod(shape) for shape in shapes])
    return [(part.view(shape), grid) for part, shape, grid in zip(parts, shapes, grids, strict=True)], end
