"""Interleaved range asymmetric numeral systems (rANS): symbols to words and back, each symbol under a
model of its own.

Source: J. Duda, arXiv:1311.2540; the interleaving, which makes one NumPy operation work on all lanes, F.
    Giesen, arXiv:1402.3392.
Lane l holds the symbols l, l + L, l + 2L, … of N; states are 32 bits and give up 16 bits at a time. All
arithmetic is on integers, so what one machine wrote every machine reads.
"""

import numpy as np

PRECISION_BITS = 14
TOTAL = 1 << PRECISION_BITS  # what the frequencies of a model add up to
MAX_SYMBOLS = 2_048
_STATE_FLOOR = 1 << 16
_SYMBOLS_PER_LANE = 16_384


class RansError(ValueError):
    """Words that no encoder wrote for these models."""


def encode(symbols: np.ndarray, models: np.ndarray, frequencies: np.ndarray) -> bytes:
    """`symbols` (N,) uint16, each under the model `models` (N,) of `frequencies` (K, A) -> little-endian
    bytes.

    Raises ValueError for a symbol of frequency 0.
    """
    lanes = lane_count(len(symbols))
    starts = np.cumsum(frequencies, axis=1) - frequencies
    both = (frequencies << 16 | starts).astype(np.uint32).reshape(-1)
    both = both[models.astype(np.int32) * np.int32(frequencies.shape[1]) + symbols]
    if len(symbols) and both.min() < 1 << 16:
        raise ValueError("a symbol has frequency 0 in its model")
    state = np.full(lanes, _STATE_FLOOR, np.uint32)
    words: list[np.ndarray] = []
    for first in range(
        (len(symbols) - 1) // lanes * lanes, -1, -lanes
    ):  # last symbols first: decoding runs forwards
        chunk = both[first : first + lanes]
        frequency, start = chunk >> 16, chunk & 0xFFFF
        now = state[: len(chunk)]
        full = now >> (32 - PRECISION_BITS) >= frequency
        words.append(now[full].astype("<u2"))
        now = np.where(full, now >> 16, now)
        times = now // frequency
        state[: len(chunk)] = (times << PRECISION_BITS) + (now - times * frequency) + start
    return state.astype("<u4").tobytes() + b"".join(chunk.tobytes() for chunk in reversed(words))


def decode(stream: bytes | memoryview, models: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """The symbols (N,) uint16 that `encode` was given, from its bytes and the same `models` (N,) and
    `frequencies` (K, A).

    Raises RansError unless the stream is used up exactly and every lane ends where encoding began.
    """
    lanes = lane_count(len(models))
    if len(stream) < 4 * lanes or len(stream) % 2:
        raise RansError(f"{len(stream):,} bytes are no stream of {len(models):,} symbols")
    state = np.frombuffer(stream, "<u4", lanes).astype(np.int64)
    words = np.frombuffer(stream, "<u2", offset=4 * lanes).astype(np.int64)
    symbol_at, frequency_at, start_at = _lookup_tables(frequencies)
    symbols = np.empty(len(models), np.uint16)
    used = 0
    for first in range(0, len(models), lanes):
        row = models[first : first + lanes].astype(np.int64) << PRECISION_BITS
        now = state[: len(row)]
        slot = row + (now & (TOTAL - 1))
        symbols[first : first + len(row)] = symbol_at[slot]
        now = frequency_at[slot] * (now >> PRECISION_BITS) + start_at[slot]
        low = np.flatnonzero(now < _STATE_FLOOR)
        if used + len(low) > len(words):
            raise RansError(
                f"the stream of {len(stream):,} bytes ends before {len(models):,} symbols are read"
            )
        now[low] = now[low] << 16 | words[used : used + len(low)]
        used += len(low)
        state[: len(row)] = now
    if used != len(words) or not (state == _STATE_FLOOR).all():
        raise RansError(
            f"the stream of {len(stream):,} bytes holds something else than {len(models):,} symbols "
            "of these models"
        )
    return symbols


def lane_count(num_symbols: int) -> int:
    """Lanes for so many symbols: each costs 4 bytes, and saves a step of the loop in Python for every
    16,384 symbols.
    """
    return max(1, num_symbols // _SYMBOLS_PER_LANE)


def end_bytes(num_symbols: int) -> int:
    """What the lanes of a stream cost beside its symbols, on average: a final state has 32 bits, of which 16
    stood there at the beginning and 8 are room that the symbols leave.
    """
    return lane_count(num_symbols) * 3


def _lookup_tables(frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each slot of each model, flat (K·TOTAL,): the symbol, its frequency, and the slot's distance
    from its start.
    """
    models, alphabet = frequencies.shape
    flat = frequencies.reshape(-1)
    symbol_at = np.repeat(np.tile(np.arange(alphabet, dtype=np.uint16), models), flat)
    starts = (np.cumsum(frequencies, axis=1) - frequencies).reshape(-1)
    distance = np.tile(np.arange(TOTAL, dtype=np.int32), models) - np.repeat(starts, flat).astype(np.int32)
    return symbol_at, np.repeat(flat, flat).astype(np.int32), distance
