from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.documents import pack_documents


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    length=st.integers(1, 16),
    begins_inside=st.booleans(),
)
def test_rows_hold_every_input_and_documents_stay_whole_where_they_fit(
    counts: list[int], length: int, begins_inside: bool
) -> None:
    ends = np.cumsum(counts)
    starts, num_tokens = ends - counts, int(ends[-1])
    if num_tokens <= length:
        return
    packing = pack_documents(starts, num_tokens, length, begins_inside)
    rows: dict[int, list[tuple[int, int]]] = {}
    for row, start, count in zip(packing.rows, packing.starts, packing.counts, strict=True):
        rows.setdefault(int(row), []).append((int(start), int(count)))
    assert sorted(rows) == list(range(len(rows)))
    assert all(sum(count for _, count in pieces) == length for pieces in rows.values())
    seen = [token for pieces in rows.values() for start, n in pieces for token in range(start, start + n)]
    assert set(seen) == set(range(num_tokens - 1)) or set(seen) == set(range(num_tokens))
    repeated = len(seen) - len(set(seen))
    assert packing.num_fillers - 1 <= repeated <= packing.num_fillers  # the last token may be one
    # Only in a stream of this kind no document with its beginning is long enough to fill a row up.
    none_is_whole = begins_inside and (len(starts) == 1 or starts[1] >= num_tokens - length)
    for pieces in rows.values():
        for (start, count), (after, _) in pairwise(pieces):
            assert start + count in ends or start + count >= num_tokens - 1
            assert after in starts or none_is_whole


def test_long_documents_are_cut_and_short_ones_fill_the_rests() -> None:
    packing = pack_documents(np.array([0, 11, 13, 16]), 17, length=4, begins_inside=False)
    pieces = list(zip(packing.rows.tolist(), packing.starts.tolist(), packing.counts.tolist(), strict=True))
    # 11 tokens: two rows and a rest of 3, beside which nothing fits; 3 and 2 tokens do not fit together.
    assert pieces[:4] == [(0, 0, 4), (1, 4, 4), (2, 8, 3), (2, 13, 1)]
    assert (3, 13, 3) in pieces
    assert (4, 11, 2) in pieces
    assert packing.num_fillers == 1 + 1 + 2


@pytest.mark.parametrize("num_documents", [3, 400])
def test_hardly_anything_is_there_twice_where_documents_are_many(num_documents: int) -> None:
    counts = np.random.default_rng(0).integers(2, 90, num_documents)
    starts = np.cumsum(counts) - counts
    packing = pack_documents(starts, int(counts.sum()), 64, begins_inside=False)
    share = packing.num_fillers / packing.counts.sum()
    assert share < 0.02 if num_documents == 400 else share < 0.5
