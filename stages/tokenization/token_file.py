"""One stream of tokens in one file: uint16, little-endian, without a header."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

_READ_TOKENS = 1_000_000


class TokenFileWriter:
    """Writes tokens to the new file `path`. Memory is that of one call."""

    def __init__(self, path: Path) -> None:
        self.num_tokens = 0
        self._file = path.open("xb")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens, (n,) uint16."""
        self._file.write(tokens.astype("<u2", copy=False).tobytes())
        self.num_tokens += tokens.size


def read_tokens(path: Path) -> Iterator[np.ndarray]:
    """The tokens of the file in order, in arrays of a million at most."""
    with path.open("rb") as file:
        while (tokens := np.fromfile(file, "<u2", _READ_TOKENS)).size:
            yield tokens
