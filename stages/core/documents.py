"""Documents in rows of one length, so that a training row begins where a document does.

Source of the idea: parameter-golf pull request 1530 (document packing). There attention stays inside a
document; here it also sees the documents before in the row.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Pieces of text in rows, in the order in which they lie there: arrays (P,) int64, rows ascending."""

    rows: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    """Tokens of each piece; those of a row sum to its length."""
    num_fillers: int
    """Tokens that are there a second time, to fill rows up."""


def pack_documents(starts: np.ndarray, num_tokens: int, length: int, begins_inside: bool) -> Packing:
    """Rows of `length` inputs that together hold all of `num_tokens` tokens but the last, which has no
    target.

    `starts` (D,) int64: where documents begin, ascending from 0; `begins_inside`: the first one has lost its
    beginning. A document longer than a row is cut into rows; its rest comes first in a row. Whole documents
    fill the rows up, the longest first, each into the row with the least room that still holds it (best fit
    decreasing). What stays free takes the beginning of a document, which is then there twice. So each token
    but a row's first comes after the one that it follows in the text, and a BOS after the end of a document.
    """
    counts = np.diff(starts, append=num_tokens - 1)
    full, rest = counts // length, counts % length
    owners = np.repeat(np.arange(len(starts)), full)
    nth = np.arange(len(owners)) - np.repeat(np.cumsum(full) - full, full)
    pieces = [(np.arange(len(owners)), starts[owners] + nth * length, np.full(len(owners), length))]
    no_bos = full > 0
    no_bos[0] |= begins_inside
    order = np.argsort(-rest, kind="stable")
    # A piece from inside a document comes first in its row: nothing but its own text may come before it.
    order = np.concatenate((order[no_bos[order]], order[~no_bos[order]]))
    order = order[rest[order] > 0]
    placed, room = _best_fit(rest[order].tolist(), int(no_bos[order].sum()), length)
    pieces.append((len(owners) + placed, (starts + full * length)[order], rest[order]))
    fillers, gaps = len(owners) + np.flatnonzero(room), room[room > 0]
    whole = starts[1:] if begins_inside and len(starts) > 1 else starts
    fitting = np.maximum(np.searchsorted(whole, num_tokens - gaps - 1, side="right"), 1)
    pieces.append((fillers, np.minimum(whole[fillers % fitting], num_tokens - gaps - 1), gaps))
    rows, begin, count = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    by_row = np.argsort(rows, kind="stable")
    return Packing(rows[by_row], begin[by_row], count[by_row], int(gaps.sum()))


def _best_fit(counts: list[int], num_first: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Row of each piece, and the room that each row has left. Each of the `num_first` first pieces opens a
    row; any other goes where the least room is left that still holds it.
    """
    free: list[list[int]] = [[] for _ in range(length + 1)]
    with_room = 0  # bit c is set where a row has room for c tokens
    placed: list[int] = []
    room: list[int] = []
    for index, count in enumerate(counts):
        fitting = with_room >> count if index >= num_first else 0
        if fitting:
            before = count + (fitting & -fitting).bit_length() - 1
            row = free[before].pop()
            if not free[before]:
                with_room ^= 1 << before
        else:
            before, row = length, len(room)
            room.append(length)
        left = before - count
        room[row] = left
        placed.append(row)
        if left:
            free[left].append(row)
            with_room |= 1 << left
    return np.array(placed, np.int64), np.array(room, np.int64)
