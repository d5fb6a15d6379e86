"""Progress of reading a corpus, in bytes of its files."""

import time

from schemas.tokenize_corpus import CorpusManifest
from stages.store.workspace import Workspace

_REPORT_SECONDS = 0.5


class ReadBytes:
    """Passes the bytes read on to the workspace, a few times a second."""

    def __init__(self, manifest: CorpusManifest, work: Workspace) -> None:
        self._work, self._done, self._reported_at = work, 0, 0.0
        self._total = sum(file.num_bytes for file in manifest.files)

    def __call__(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_SECONDS or self._done >= self._total:
            self._reported_at = now
            self._work.report_progress(min(self._done, self._total), self._total, "bytes")
