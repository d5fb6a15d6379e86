"""How likely each code of a matrix is: one table of frequencies for each class of spread, shared by all
matrices.

A code's spread is taken as (its row's) × (its column's), in quarters of an octave: class = row class + column
class. The classes are stored, a byte for each row and column, and the tables once for the whole model; both
are small beside the codes. Codes are symmetric enough that a table holds the magnitudes only. Shape legend: R
rows, C columns, K tables.
"""

from dataclasses import dataclass

import numpy as np

from stages.core.blob.rans import MAX_SYMBOLS, TOTAL

CLASSES_PER_OCTAVE = 4
LARGEST_CODE = MAX_SYMBOLS // 2 - 1
_SPREAD_FLOOR = 2.0**-4  # class 0; a row of nothing but zeros lies here
_SYMBOLS_WORTH_A_TABLE = 4_096
_MOST_CLASSES = 64
_ZERO = MAX_SYMBOLS // 2


class ModelTableError(ValueError):
    """Bytes that are no tables of frequencies."""


@dataclass(frozen=True)
class SpreadClasses:
    """Row class int8 (R,) and column class int8 (C,); their sum is a code's class before it is limited to
    the tables there are.
    """

    rows: np.ndarray
    columns: np.ndarray

    def models(self, lowest: int, num_tables: int) -> np.ndarray:
        """Index of each code's table, uint8 (R·C,)."""
        summed = self.rows.astype(np.int16)[:, None] + self.columns.astype(np.int16)
        return np.clip(summed - lowest, 0, num_tables - 1).astype(np.uint8).reshape(-1)


def spread_classes(codes: np.ndarray) -> SpreadClasses:
    """The classes of `codes` int16 (R, C): columns by their rms, then rows by the rms of what is left of
    it.
    """
    squares = codes.astype(np.float64) ** 2
    overall = max(float(squares.mean()), _SPREAD_FLOOR**2)
    columns = _classes(np.sqrt(squares.mean(axis=0) / overall))
    left = squares / np.exp2(2 * columns / CLASSES_PER_OCTAVE)
    rows = _classes(np.maximum(np.sqrt(left.mean(axis=1)), _SPREAD_FLOOR) / _SPREAD_FLOOR)
    return SpreadClasses(rows, columns)


@dataclass(frozen=True)
class CodeTables:
    """The lowest class that has a table, the frequencies int64 (K, MAX_SYMBOLS) of the classes from there
    on, and how many codes of each magnitude fall to each table, int64 (K, LARGEST_CODE + 1).
    """

    lowest: int
    frequencies: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.frequencies)

    def code_bytes(self) -> float:
        """What all codes cost under their tables, without an end of the stream."""
        one_sided = self.frequencies[:, _ZERO:]
        occurs = self.counts > 0
        return float((self.counts[occurs] * np.log2(TOTAL / one_sided[occurs])).sum()) / 8


def fit_tables(matrices: list[tuple[np.ndarray, SpreadClasses]]) -> CodeTables:
    """Tables for codes int16 (R, C) with their classes.

    Classes at both ends with too few codes to pay for a table share the next one's. The symbol of a code is
    code + MAX_SYMBOLS / 2.
    """
    counts = np.zeros((_MOST_CLASSES, LARGEST_CODE + 1), np.int64)
    for codes, spread in matrices:
        summed = (spread.rows.astype(np.int64)[:, None] + spread.columns).clip(0, _MOST_CLASSES - 1)
        place = summed * (LARGEST_CODE + 1) + np.abs(codes.astype(np.int64))
        counts += np.bincount(place.reshape(-1), minlength=counts.size).reshape(counts.shape)
    if not counts.any():
        return CodeTables(0, np.empty((0, MAX_SYMBOLS), np.int64), counts[:0])
    so_far = np.cumsum(counts.sum(axis=1))
    lowest = int(np.searchsorted(so_far, min(_SYMBOLS_WORTH_A_TABLE, so_far[-1])))
    highest = max(lowest, int(np.searchsorted(so_far, max(so_far[-1] - _SYMBOLS_WORTH_A_TABLE, 1))))
    counts[lowest] += counts[:lowest].sum(axis=0)
    counts[highest] += counts[highest + 1 :].sum(axis=0)
    counts = counts[lowest : highest + 1]
    return CodeTables(lowest, np.stack([_two_sided(_one_sided(row)) for row in counts]), counts)


def tables_to_bytes(frequencies: np.ndarray) -> bytes:
    """For each table (K, MAX_SYMBOLS) the number of magnitudes after 0; then the frequencies of those, in
    byte planes; all uint16.
    """
    sides = [row[_ZERO + 1 :] for row in frequencies]
    lengths = np.array([int(np.flatnonzero(side)[-1]) + 1 if side.any() else 0 for side in sides], "<u2")
    values = np.concatenate(
        [
            np.empty(0, "<u2"),
            *(side[:length].astype("<u2") for side, length in zip(sides, lengths, strict=True)),
        ]
    )
    return lengths.tobytes() + values.view(np.uint8).reshape(-1, 2).T.tobytes()


def tables_from_bytes(content: bytes | memoryview, num_tables: int) -> tuple[np.ndarray, int]:
    """The tables int64 (num_tables, MAX_SYMBOLS), and how many bytes of `content` they took.

    Raises ModelTableError.
    """
    if 2 * num_tables > len(content):
        raise ModelTableError(f"{len(content):,} bytes cannot hold {num_tables} tables of frequencies")
    lengths = np.frombuffer(content[: 2 * num_tables], "<u2").astype(np.int64)
    used = 2 * num_tables + 2 * int(lengths.sum())
    if used > len(content) or (lengths > LARGEST_CODE).any():
        raise ModelTableError(f"{len(content):,} bytes cannot hold {num_tables} tables of frequencies")
    planes = np.frombuffer(content[2 * num_tables : used], np.uint8).reshape(2, -1)
    values = np.ascontiguousarray(planes.T).view("<u2").reshape(-1).astype(np.int64)
    tables = np.zeros((num_tables, MAX_SYMBOLS), np.int64)
    for row, side in zip(tables, np.split(values, np.cumsum(lengths)[:-1]), strict=True):
        if 2 * int(side.sum()) > TOTAL:
            raise ModelTableError(f"a table's frequencies add up to more than {TOTAL:,}")
        row[:] = _two_sided(np.concatenate([[TOTAL - 2 * side.sum()], side]))
    return tables, used


def _classes(ratios: np.ndarray) -> np.ndarray:
    floor = 2.0 ** (-100 / CLASSES_PER_OCTAVE)
    return np.clip(np.round(CLASSES_PER_OCTAVE * np.log2(np.maximum(ratios, floor))), -100, 100).astype(
        np.int8
    )


def _one_sided(counts: np.ndarray) -> np.ndarray:
    """Frequencies of 0 and of +k (which −k has too) from counts of the magnitudes; 0 always keeps a share."""
    total = int(counts.sum())
    sides = np.where(counts[1:] > 0, np.maximum(counts[1:] * TOTAL // max(2 * total, 1), 1), 0)
    while (excess := 2 * int(sides.sum()) - (TOTAL - 1)) > 0:
        largest = np.argsort(-sides, kind="stable")[: (excess + 1) // 2]
        sides[largest] -= 1
    zero = TOTAL - 2 * int(sides.sum())
    if not counts[0] and sides.any():  # what rounding left goes to a code that occurs
        sides[int(np.argmax(sides))] += (zero - 1) // 2
        zero = TOTAL - 2 * int(sides.sum())
    return np.concatenate([[zero], sides])


def _two_sided(one_sided: np.ndarray) -> np.ndarray:
    table = np.zeros(MAX_SYMBOLS, np.int64)
    length = len(one_sided)
    table[_ZERO : _ZERO + length] = one_sided
    table[_ZERO - length + 1 : _ZERO] = one_sided[:0:-1]
    return table
