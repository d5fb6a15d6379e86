"""Checkpoints of an unfinished stage in the remote store: another machine goes on from the newest one.

Each try has a folder of its own there, so that two machines never write one object:

work/<stage>/<key>/<try>/manifest     names the files of its newest checkpoint; written after them
work/<stage>/<key>/<try>/<sha256>     those that only serve to go on; the others are blobs already
"""

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from schemas.base import Schema
from schemas.files import FileRef
from schemas.stages import Stage
from stages.core.whole_files import TEMPORARY_FILES
from stages.store.hashing import FileHashes
from stages.store.remote import DamagedObjectError, Remote, blob_name

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_LEAVE_SECONDS = 10.0
_MANIFEST = "manifest"


class CheckpointFiles(Schema):
    """The files of a checkpoint, by their paths in the work folder; `step` orders checkpoints of one key."""

    step: str
    files: tuple[FileRef, ...]


class Checkpoints:
    """Those of one key; `prefix` is its folder in the remote, `folder` its work folder here."""

    def __init__(self, remote: Remote, stage: Stage, prefix: str, folder: Path) -> None:
        self._remote, self._stage, self._prefix, self._folder = remote, stage, prefix, folder
        self._try = f"{prefix}/{uuid4().hex}"
        self._sent = CheckpointFiles(step="", files=())

    def fetch_newest(self) -> None:
        """Have the newest sound checkpoint of any machine here, unless this one's own is as new."""
        found = []
        for item in self._remote.objects(f"{self._prefix}/"):
            place, _, name = item.name.rpartition("/")
            try:
                if name == _MANIFEST and (content := self._remote.read(item.name)) is not None:
                    found.append((CheckpointFiles.model_validate_json(content), place))
            except ValueError as error:
                log.warning("%s: the checkpoint of a try cannot be used: %s", self._stage.name, error)
        for files, place in sorted(found, key=lambda pair: pair[0].step, reverse=True):
            if files.step <= self._newest_step():
                return
            try:
                for ref in files.files:
                    self._fetch(ref, place)
            except (DamagedObjectError, FileNotFoundError) as error:
                log.warning("%s: %s cannot be used, trying another: %s", self._stage.name, files.step, error)
                continue
            self._sent = CheckpointFiles(step=files.step, files=())
            log.info("%s: fetched %s of another try from %s", self._stage.name, files.step, self._remote.url)
            return

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Within the block, each new checkpoint in the work folder goes to the remote. What cannot be sent is
        named in the log, and costs nothing else.
        """
        done = threading.Event()
        sender = threading.Thread(target=self._send_until, args=(done,), name="checkpoints", daemon=True)
        sender.start()
        try:
            yield
        finally:
            done.set()
            sender.join(_LEAVE_SECONDS)

    def _send_until(self, done: threading.Event) -> None:
        refused = ""
        while not done.wait(_LOOK_SECONDS):
            step = self._newest_step()
            if step in (self._sent.step, refused):
                continue
            try:
                self._send(step)
            except (OSError, ValueError) as error:
                refused = step
                log.warning("%s: %s is not in the remote store: %s", self._stage.name, step, error)

    def _send(self, step: str) -> None:
        marker = (self._folder / "checkpoints" / step).with_suffix(".json")
        about = marker.read_bytes()  # first: what it names is there, and stays until the next but one
        others = [path for name in self._stage.resumes_with for path in (self._folder / name).rglob("*")]
        refs = [self._upload(path) for path in sorted(marker.parent.glob(f"{step}.*")) if path != marker]
        refs += [self._upload(path) for path in sorted(others) if not path.match(TEMPORARY_FILES)]
        growing = [self._folder / name for name in self._stage.scratch if (self._folder / name).is_file()]
        refs += [self._upload(path, path.read_bytes()) for path in growing]
        refs.append(self._upload(marker, about))
        files = CheckpointFiles(step=step, files=tuple(refs))
        self._remote.replace(f"{self._try}/{_MANIFEST}", files.model_dump_json().encode())
        named = {self._name(ref, self._try) for ref in files.files}
        old = {self._name(ref, self._try) for ref in self._sent.files} - named
        self._sent = files
        self._remote.delete(sorted(name for name in old if name.startswith(self._try)))

    def _upload(self, path: Path, content: bytes | None = None) -> FileRef:
        """`content`: of a file that may change meanwhile."""
        inside = path.relative_to(self._folder).as_posix()
        if content is None:
            ref = FileRef(path=inside, num_bytes=path.stat().st_size, sha256=FileHashes(None).sha256(path))
        else:
            digest = hashlib.sha256(content).hexdigest()
            ref = FileRef(path=inside, num_bytes=len(content), sha256=digest)
        self._remote.upload(path if content is None else content, self._name(ref, self._try), ref.num_bytes)
        return ref

    def _fetch(self, ref: FileRef, place: str) -> None:
        target = self._folder / ref.path
        if FileHashes(None).problem_with(target, ref.num_bytes, ref.sha256):
            self._remote.download(self._name(ref, place), ref, target)

    def _name(self, ref: FileRef, place: str) -> str:
        serves_only_that = ref.path.partition("/")[0] in self._stage.scratch
        return f"{place}/{ref.sha256}" if serves_only_that else blob_name(ref.sha256)

    def _newest_step(self) -> str:
        return max((path.stem for path in (self._folder / "checkpoints").glob("*.json")), default="")
