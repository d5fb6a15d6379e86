"""Encode a stream of texts in order, in this process or shared out to several.

The helpers are children that read texts from their standard input and write ids to their standard output, so that they
end with their parent however it ends. Run as `python -m stages.encode_stream MODEL` by this module only.
"""

import os
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from stages.fast_encode import TextEncoder

_BATCH_CHARACTERS = 2_000_000
_WAITING_BATCHES = 2  # for each process


def available_processes() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_stream(texts: Iterable[str], model_path: Path, num_processes: int) -> Iterator[tuple[str, bytes]]:
    """(text, its ids as native uint16, without BOS) for each text, in order; a few batches are held at most.

    With more than one process, this one reads and writes and the others encode. Raises ChildProcessError when one of
    them is killed.
    """
    if num_processes == 1:
        encoder = TextEncoder(model_path.read_bytes())
        for text in texts:
            yield text, encoder.encode(text)
        return
    with ExitStack() as stack:
        idle: queue.SimpleQueue[_Helper] = queue.SimpleQueue()
        for _ in range(num_processes):
            idle.put(stack.enter_context(_Helper(model_path)))
        threads = stack.enter_context(ThreadPoolExecutor(num_processes, thread_name_prefix="encode"))
        waiting: deque[tuple[list[str], Future[list[bytes]]]] = deque()
        try:
            for batch in _batches(texts):
                waiting.append((batch, threads.submit(_encode_batch, idle, batch)))
                if len(waiting) > _WAITING_BATCHES * num_processes:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        finally:
            for _, future in waiting:
                future.cancel()


def _finished(waiting: deque[tuple[list[str], Future[list[bytes]]]]) -> Iterator[tuple[str, bytes]]:
    batch, future = waiting.popleft()
    return zip(batch, future.result(), strict=True)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Helper:
    """A child that encodes batches, one at a time."""

    def __init__(self, model_path: Path) -> None:
        command = [sys.executable, "-m", "stages.encode_stream", str(model_path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> "_Helper":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def encode(self, batch: list[str]) -> list[bytes]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _write_parts(self._process.stdin, [text.encode() for text in batch])
            ids = _read_parts(self._process.stdout)
        except BrokenPipeError:
            ids = None
        if ids is None:
            raise ChildProcessError(f"a process that encodes text ended with status {self._process.wait()}")
        return ids


def _encode_batch(idle: "queue.SimpleQueue[_Helper]", batch: list[str]) -> list[bytes]:
    helper = idle.get()
    try:
        return helper.encode(batch)
    finally:
        idle.put(helper)


def _write_parts(stream: IO[bytes], parts: list[bytes]) -> None:
    """One message: number of parts, their lengths, the parts."""
    stream.write(np.array([len(parts), *map(len, parts)], np.uint64).tobytes())
    stream.write(b"".join(parts))
    stream.flush()


def _read_parts(stream: IO[bytes]) -> list[bytes] | None:
    """The parts of the next message; None at the end of the stream."""
    count = stream.read(8)
    if len(count) < 8:
        return None
    lengths = np.frombuffer(stream.read(8 * int.from_bytes(count, sys.byteorder)), np.uint64).astype(np.int64)
    ends = np.cumsum(lengths)
    body = stream.read(int(lengths.sum()))
    if len(body) < lengths.sum():
        return None
    return [body[end - length : end] for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)]


def _serve(model_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which then closes the pipe
    encoder = TextEncoder(model_path.read_bytes())
    while (parts := _read_parts(sys.stdin.buffer)) is not None:
        _write_parts(sys.stdout.buffer, [encoder.encode(part.decode()) for part in parts])


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
