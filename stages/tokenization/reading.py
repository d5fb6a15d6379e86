"""Progress of reading a corpus, in bytes of its files."""

import time

from schemas.row_groups import RowGroups
from schemas.tokenize_corpus import CorpusManifest
from stages.store.workspace import Workspace

_REPORT_SECONDS = 0.5


def bytes_to_read(manifest: CorpusManifest) -> int:
    """Bytes of all files of a corpus or part; of row groups their share of the file."""
    if isinstance(manifest, RowGroups):
        return manifest.num_bytes
    return sum(file.num_bytes for file in manifest.files)


class ReadBytes:
    """Passes the bytes read on to the workspace, a few times a second."""

    def __init__(self, manifest: CorpusManifest, work: Workspace) -> None:
        self._work, self._done, self._reported_at = work, 0, 0.0
        self._total = bytes_to_read(manifest)

    def __call__(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_SECONDS or self._done >= self._total:
            self._reported_at = now
            self._work.report_progress(min(self._done, self._total), self._total, "bytes")
