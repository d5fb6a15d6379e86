"""Token shards -> batches.

The batch of a step depends on seed and step alone, not on processes or on where one resumed.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from schemas.train_settings import DataSettings
from stages.core.documents import pack_documents
from stages.core.shards import BOS_ID, open_shard


class TokenStream:
    """The shards of a split read as one long array, memory-mapped."""

    def __init__(self, shards: list[Path]) -> None:
        self._arrays = [open_shard(path) for path in shards]
        self._starts = np.cumsum([0] + [len(array) for array in self._arrays])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) as int64, across shard borders."""
        parts: list[np.ndarray] = []
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while count > 0:
            offset = start - int(self._starts[shard])
            part = self._arrays[shard][offset : offset + count]
            parts.append(part)
            start, count, shard = start + len(part), count - len(part), shard + 1
        return np.concatenate(parts).astype(np.int64)

    def document_starts(self) -> np.ndarray:
        """Where documents begin, ascending, (D,) int64: each BOS, and token 0 where the stream begins inside
        one. Reads all shards.
        """
        parts = [np.flatnonzero(array == BOS_ID) for array in self._arrays]
        starts = np.concatenate([part + start for part, start in zip(parts, self._starts, strict=False)])
        return starts if len(starts) and starts[0] == 0 else np.concatenate(([0], starts))


class Rows(Protocol):
    """What a training split is cut into; each row is (T+1,) int64, inputs and targets in one."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> np.ndarray: ...


class StreamRows:
    """Row i is tokens [i·T, (i+1)·T], so neighbours share one token: the last target of one is the first
    input of the next.
    """

    def __init__(self, stream: TokenStream, length: int) -> None:
        self._stream, self._length = stream, length

    def __len__(self) -> int:
        return (len(self._stream) - 1) // self._length

    def read(self, row: int) -> np.ndarray:
        return self._stream.read(row * self._length, self._length + 1)


class DocumentRows:
    """Rows that begin with a document, or inside one that is longer than a row (`pack_documents`).

    `at_start` is the share of rows that begin with a document, `repeated` that of inputs that only fill up.
    """

    def __init__(self, stream: TokenStream, length: int) -> None:
        self._stream = stream
        starts = stream.document_starts()
        begins_inside = int(stream.read(0, 1)[0]) != BOS_ID
        packing = pack_documents(starts, len(stream), length, begins_inside)
        self._starts, self._counts = packing.starts, packing.counts
        num_rows = int(packing.rows[-1]) + 1
        self._first = np.searchsorted(packing.rows, np.arange(num_rows + 1))
        whole = np.isin(self._starts[self._first[:-1]], starts[1:] if begins_inside else starts)
        self.at_start, self.repeated = float(whole.mean()), packing.num_fillers / (num_rows * length)

    def __len__(self) -> int:
        return len(self._first) - 1

    def read(self, row: int) -> np.ndarray:
        begin, end = int(self._first[row]), int(self._first[row + 1])
        # What follows the last piece is the last target.
        return np.concatenate(
            [
                self._stream.read(int(self._starts[i]), int(self._counts[i]) + (i == end - 1))
                for i in range(begin, end)
            ]
        )


class SequenceOrder:
    """Which training sequence comes at which position: epoch after epoch, each a new permutation, or as
    they lie.
    """

    def __init__(self, num_sequences: int, seed: int, shuffled: bool) -> None:
        self.num_sequences, self._seed, self._shuffled = num_sequences, seed, shuffled
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Sequence numbers for positions counted over all epochs."""
        epochs, offsets = np.divmod(positions, self.num_sequences)
        if not self._shuffled:
            return offsets
        result = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            if epoch != self._epoch:
                self._permutation = np.random.default_rng([self._seed, int(epoch)]).permutation(
                    self.num_sequences
                )
                self._epoch = int(epoch)
            result[epochs == epoch] = self._permutation[offsets[epochs == epoch]]
        return result


class BatchLoader:
    """One process's share of each step's global batch, prepared a step ahead in a thread.

    Raises ValueError when the split is shorter than one sequence.
    """

    def __init__(
        self,
        stream: TokenStream,
        settings: DataSettings,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
        pin: bool = False,
    ) -> None:
        if len(stream) <= settings.sequence_length:
            raise ValueError(
                f"the training split has {len(stream)} tokens, fewer than one sequence of "
                f"{settings.sequence_length} + 1"
            )
        self._settings, self._pin = settings, pin
        kind = DocumentRows if settings.windows == "documents" else StreamRows
        self.rows: Rows = kind(stream, settings.sequence_length)
        self.order = SequenceOrder(len(self.rows), seed, settings.order == "shuffled")
        self._share = settings.batch_sequences // num_processes
        self._offset = rank * self._share
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: tuple[int, Future[list[Tensor]]] | None = None

    def batch(self, step: int) -> list[Tensor]:
        """Micro-batches of step `step` (from 0), together this process's share: each (B, T+1) int64,
        inputs and targets in one.

        They stay in one piece because only a contiguous pinned tensor goes to a GPU without making the host
        wait.
        """
        if self._ahead is not None and self._ahead[0] == step:
            current = self._ahead[1].result()
        else:
            current = self._read(step)
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        return current

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> list[Tensor]:
        first = step * self._settings.batch_sequences + self._offset
        sequences = self.order.at(np.arange(first, first + self._share))
        tokens = torch.from_numpy(np.stack([self.rows.read(int(i)) for i in sequences]))
        if self._pin:
            tokens = tokens.pin_memory()
        return list(tokens.split(self._settings.micro_batch_sequences))


def in_pieces(rows: Tensor, length: int) -> Tensor:
    """Rows (B, T+1) cut into pieces (B·T/length, length+1) that predict the same T tokens of each row.

    The last target of a piece is the first input of the next, as with the rows of a stream.
    """
    if rows.shape[1] == length + 1:
        return rows
    return rows.unfold(1, length + 1, length).reshape(-1, length + 1)
