"""Hash table from words to token ids: looks up many words at once by array operations, and learns new ones.

W words in a call, V rows in the table. A word is a slice of a byte array. Words of up to 15 bytes are keyed
by two 64-bit numbers, made of their bytes and their length, in an open-addressing hash table. Longer words
are rare; a dict holds them.
"""

from collections.abc import Callable

import numpy as np

# Bytes that must follow the last word of the data given to `find`.
PADDING = 16

_LONG = 16  # a word of so many bytes or more is not in the hash table
_LENGTHS = range(_LONG + 1)
_LOW_MASK = np.array([2 ** (8 * min(length, 8)) - 1 for length in _LENGTHS], np.uint64)
_HIGH_MASK = np.array([2 ** (8 * max(length - 8, 0)) - 1 for length in range(_LONG)] + [0], np.uint64)
_LENGTH_TAG = np.array([length << 56 for length in _LENGTHS], np.uint64)
_NO_WORD = 2**64 - 1
# Odd constants of the golden ratio and of xxHash.
_LOW_FACTOR, _HIGH_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_START_ROWS, _START_IDS, _START_BITS = 1024, 4096, 16
_MAX_ROWS = 400_000
_MAX_IDS = 8_000_000


class WordTable:
    """Rows of token ids, found by word. `encode` gives the ids of N new words as one array, and their counts
    (N,).

    Row 0 stands for no word. A word takes about 100 bytes; the owner starts a new table once this one
    `is_full`.
    """

    def __init__(self, encode: Callable[[list[bytes]], tuple[np.ndarray, np.ndarray]]) -> None:
        self._encode = encode
        self._num_rows, self._num_ids = 1, 0
        self._low, self._high = np.zeros(_START_ROWS, np.uint64), np.full(_START_ROWS, _NO_WORD, np.uint64)
        self._first_id, self._num_ids_of = np.zeros(_START_ROWS, np.int64), np.zeros(_START_ROWS, np.int64)
        self._ids = np.zeros(_START_IDS, np.uint16)
        self._slot_bits = _START_BITS
        self._row_in_slot = np.zeros(2**_START_BITS, np.int32)
        self._long_words: dict[bytes, int] = {}

    def is_full(self) -> bool:
        return self._num_rows > _MAX_ROWS or self._num_ids > _MAX_IDS

    def find(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Rows (W,) of the words data[starts[i]:ends[i]]; data is uint8 with PADDING bytes behind the
        last word.
        """
        lengths = np.minimum(ends - starts, _LONG)
        windows = np.ndarray((data.size - PADDING + 1,), "V16", data, strides=(1,))
        keys = windows[starts].view("<u8").reshape(-1, 2)
        low = keys[:, 0] & _LOW_MASK[lengths]
        high = keys[:, 1] & _HIGH_MASK[lengths] | _LENGTH_TAG[lengths]
        slots = self._slots(low, high)
        rows = _take(self._row_in_slot, slots)
        # Positions whose slot holds another word look on in the next one; an empty slot ends the search.
        searching = np.flatnonzero(self._differ(rows, low, high))
        unknown: list[np.ndarray] = []
        while searching.size:
            in_use = rows[searching] != 0
            unknown.append(searching[~in_use])
            searching = searching[in_use]
            slots[searching] = (slots[searching] + 1) & (2**self._slot_bits - 1)
            rows[searching] = candidates = self._row_in_slot[slots[searching]]
            searching = searching[self._differ(candidates, low[searching], high[searching])]
        if unknown and (at := np.concatenate(unknown)).size:
            is_long = lengths[at] == _LONG
            short, long = at[~is_long], at[is_long]
            first, number = _distinct(low[short], high[short])
            one_of_each = short[first]
            words = _words(data, starts[one_of_each], ends[one_of_each])
            rows[short] = self._learn_short(words, low[one_of_each], high[one_of_each])[number]
            rows[long] = self._find_long(_words(data, starts[long], ends[long]))
        return rows

    def add(self, ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """New rows (N,) that no word leads to. `ids` holds counts[i] ids of each, row after row."""
        num_new = len(counts)
        rows = np.arange(self._num_rows, self._num_rows + num_new)
        while len(self._low) < self._num_rows + num_new:
            self._low, self._first_id, self._num_ids_of = (
                _doubled(self._low),
                _doubled(self._first_id),
                _doubled(self._num_ids_of),
            )
            self._high = _doubled(self._high, _NO_WORD)
        while len(self._ids) < self._num_ids + len(ids):
            self._ids = _doubled(self._ids)
        self._ids[self._num_ids : self._num_ids + len(ids)] = ids
        self._num_ids_of[rows] = counts
        self._first_id[rows] = self._num_ids + np.cumsum(counts) - counts
        self._num_rows += num_new
        self._num_ids += len(ids)
        return rows

    def has_ids(self, row: int) -> bool:
        return bool(self._num_ids_of[row])

    def ids(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the rows (W,) in order, uint16, and the bounds (W + 1,) between the rows' ids."""
        counts = _take(self._num_ids_of, rows)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(_take(self._first_id, rows) - bounds[:-1], counts)
        places += np.arange(bounds[-1])
        return _take(self._ids, places), bounds

    def _differ(self, rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Whether each row (W,) has another key than (low, high)."""
        return (_take(self._low, rows) != low) | (_take(self._high, rows) != high)

    def _learn_short(self, words: list[bytes], low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """New rows (W,) of distinct words, with their keys (W,)."""
        rows = self.add(*self._encode(words))
        self._low[rows], self._high[rows] = low, high
        self._place(rows)
        return rows

    def _find_long(self, words: list[bytes]) -> np.ndarray:
        """Rows (W,) of long words, known or new."""
        if new := [word for word in dict.fromkeys(words) if word not in self._long_words]:
            rows = self.add(*self._encode(new))
            self._long_words.update(zip(new, rows.tolist(), strict=True))
        return np.fromiter(map(self._long_words.__getitem__, words), np.int64, len(words))

    def _place(self, rows: np.ndarray) -> None:
        """Enter rows with keys into the hash table, which stays at most a quarter full."""
        if 4 * self._num_rows > 2**self._slot_bits:
            while 4 * self._num_rows > 2**self._slot_bits:
                self._slot_bits += 1
            self._row_in_slot = np.zeros(2**self._slot_bits, np.int32)
            rows = np.flatnonzero(self._high[: self._num_rows] != _NO_WORD)
        slots = self._slots(self._low[rows], self._high[rows])
        while rows.size:
            free = self._row_in_slot[slots] == 0
            self._row_in_slot[slots[free]] = rows[free]
            # Of several rows that wanted one slot, the last has it.
            left = self._row_in_slot[slots] != rows
            rows, slots = rows[left], (slots[left] + 1) & (2**self._slot_bits - 1)

    def _slots(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """First slots (W,) of keys; the multiplications wrap."""
        return (((low * _LOW_FACTOR) ^ (high * _HIGH_FACTOR)) >> np.uint64(64 - self._slot_bits)).view(
            np.int64
        )


def _distinct(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position of one of each distinct key, and for each of the keys (N,) the number of its own."""
    order = np.lexsort((low, high))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (low[order[1:]] != low[order[:-1]]) | (high[order[1:]] != high[order[:-1]])
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(is_new) - 1
    return order[is_new], number


def _words(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> list[bytes]:
    text = data.tobytes()
    return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _take(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """array[places], a third faster: no place is outside, so none is looked at."""
    return array.take(places, mode="clip")


def _doubled(array: np.ndarray, fill: int = 0) -> np.ndarray:
    return np.concatenate([array, np.full(len(array), fill, array.dtype)])
