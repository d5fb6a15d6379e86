"""A store that caches a remote one: results, runs and ledgers are the same on every machine that uses it."""

import logging
import os
import shutil
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from schemas.base import fingerprint
from schemas.errors import SpecError, first_line, on_one_line
from schemas.files import FileRef, SourceFile, StageRecord
from schemas.notes import RunNotes
from schemas.pipeline import PipelineReport
from schemas.seeds import Ledger
from schemas.stages import STORED, Stage
from stages.core.checksummed import read_checksummed, write_checksummed
from stages.processes.locks import waiting_lock
from stages.seeds.ledger import (
    ledger_as_json,
    ledger_of_json,
    ledger_path,
    refuse_other_plan,
    write_ledger,
)
from stages.store.checkpoints import Checkpoints
from stages.store.notes import NOTES_NAME, Change, notes_as_json, notes_of_json, save_notes
from stages.store.remote import DamagedObjectError, Remote, RemoteObject, blob_name
from stages.store.runs import REPORT_NAME
from stages.store.store import FETCHED, RECORD_NAME, Store, file_refs, rename_folder, sound_record
from stages.store.workspace import DamagedFileError

log = logging.getLogger(__name__)

_AT_ONCE = 16  # requests for small documents


class SharedStore(Store):
    """The folder `root` as the cache of `remote`.

    The remote's record of a key counts on every machine; files are fetched when they are read.
    """

    def __init__(self, root: Path | str, remote: Remote) -> None:
        super().__init__(root)
        self.remote = remote

    def find(self, stage: Stage, key: str) -> StageRecord | None:
        """The record that all machines have, or this machine's own, which they have from now on.

        None if there is none. Damage is named in the log, never served.
        """
        shared = self._shared_record(stage, key)
        if shared is not None and self._problem_with(shared) is None:
            self._replace_lost(shared)
            return self._keep(stage, key, shared)
        own = super().find(stage, key)
        return own if own is None else self._publish_for_all(stage, key, own)

    def record(self, stage: Stage, key: str) -> StageRecord | None:
        """This machine's record of `key`, otherwise the remote's; its files are not looked at."""
        if (self.folder(stage, key) / RECORD_NAME).exists() and (own := super().record(stage, key)):
            return own
        shared = self._shared_record(stage, key)
        return shared if shared is None else self._keep(stage, key, shared)

    def problem(self, ref: FileRef | SourceFile) -> str | None:
        """A file that is not sound here is none while the remote has it."""
        found = super().problem(ref)
        if found is None or (isinstance(ref, FileRef) and self.remote.has_blob(ref)):
            return None
        return f"{found}, and {self.remote.url} does not have it" if isinstance(ref, FileRef) else found

    def fetch(self, ref: FileRef) -> Path:
        """The sound file on this machine. Raises DamagedFileError where the remote has none either."""
        target = self.root / ref.path
        if (here := super().problem(ref)) is None:
            return target
        if not ref.path.startswith("stages/"):
            raise DamagedFileError(f"{here}; only files below stages/ are fetched")
        if target.exists():
            log.warning("%s: taken from %s", here, self.remote.url)
        self._keep_record_of(ref)
        try:
            self.remote.download(blob_name(ref.sha256), ref, target)
        except FileNotFoundError:
            raise DamagedFileError(f"{here}, and {self.remote.url} does not have it") from None
        except DamagedObjectError as error:
            raise DamagedFileError(f"{here}; {error}") from None
        return target

    def bring(self, value: Any) -> None:
        """Fetch what is not here. Raises DamagedFileError."""
        for ref in file_refs(value):
            if isinstance(ref, FileRef):
                self.fetch(ref)

    def publish(self, stage: Stage, key: str, record: StageRecord) -> StageRecord:
        """Publish here, then for all machines; of two that did so for one key, the first one counts."""
        super().publish(stage, key, record)
        counts = self._publish_for_all(stage, key, record)
        self.remote.delete([item.name for item in self.remote.objects(f"work/{_place(stage, key)}/")])
        return counts

    @contextmanager
    def keeping_checkpoints(self, stage: Stage, key: str) -> Iterator[None]:
        """Go on from the newest checkpoint of any machine, and send each new one to the remote."""
        if not stage.resumable:
            yield
            return
        checkpoints = Checkpoints(
            self.remote, stage, f"work/{_place(stage, key)}", self.work_folder(stage, key)
        )
        checkpoints.fetch_newest()
        with checkpoints.sending():
            yield

    def runs_root(self) -> Path:
        """A folder with exactly the runs and ledgers of the remote, brought up to date now."""
        mirror = self.root / "cache" / f"remote-{fingerprint(self.remote.url)[:12]}"
        listed = {item.name.removeprefix("runs/"): item for item in self.remote.objects("runs/")}
        objects = {run_id: item for run_id, item in listed.items() if "/" not in run_id}
        (mirror / "runs").mkdir(parents=True, exist_ok=True)
        with waiting_lock(mirror / "lock", f"copy of {self.remote.url}", "which brings it up to date"):
            self._mirror_runs(mirror, objects)
            self._mirror_notes(mirror, objects.keys())
            for label in sorted({item.name.split("/")[1] for item in self.remote.objects("ledgers/")}):
                self._mirror_ledger(mirror, label)
        return mirror

    def share_report(self, report: PipelineReport) -> None:
        self.remote.replace(f"runs/{report.run_id}", report.model_dump_json(indent=1).encode())

    def forget_report(self, run_id: str) -> None:
        notes = [item.name for item in self.remote.objects(f"notes/{run_id}/")]
        self.remote.delete([f"runs/{run_id}", *notes])

    def change_notes(self, run_id: str, change: Change) -> RunNotes:
        """Change the notes that all machines have. Of two changes at once the second is made to what the
        first left.
        """
        while True:
            number, before = self._newest_notes(run_id)
            after = change(before)
            name = f"notes/{run_id}/{number + 1:08d}"
            if after == before or self.remote.create(name, notes_as_json(after)):
                return after

    def _newest_notes(self, run_id: str) -> tuple[int, RunNotes]:
        """The number of the newest version of a run's notes, and that version; 0 and empty without any."""
        if not (versions := self.remote.objects(f"notes/{run_id}/")):
            return 0, RunNotes()
        name = versions[-1].name
        return int(name.rpartition("/")[2]), self._read_notes(name)

    def _read_notes(self, name: str) -> RunNotes:
        try:
            return notes_of_json(self.remote.read(name) or b"", f"{self.remote.url}: {name}")
        except ValueError as error:
            raise SpecError(
                f"{self.remote.url}: {name}: damaged ({first_line(error)}). "
                "Remove this object: the version before it counts then"
            ) from None

    def share_ledger(self, ledger: Ledger) -> Ledger:
        """The ledger with the entries of all machines, which the remote has from now on.

        Raises SpecError when it was declared there with another first seed or maximum.
        """
        while True:
            number, newest = self._newest(ledger.label)
            if newest is not None:
                refuse_other_plan(newest, ledger)
                ledger = newest.merged_with(ledger)
            name = f"ledgers/{ledger.label}/{number + 1:08d}"
            if ledger == newest or not ledger.entries:
                return ledger
            if self.remote.create(name, ledger_as_json(ledger)):
                return ledger

    def _newest(self, label: str) -> tuple[int, Ledger | None]:
        """The number of the ledger's newest version, and that version; 0 and None without any."""
        versions = self.remote.objects(f"ledgers/{label}/")
        if not versions:
            return 0, None
        name = versions[-1].name
        try:
            content = self.remote.read(name) or b""
            return int(name.rpartition("/")[2]), ledger_of_json(content, f"{self.remote.url}: {name}")
        except ValueError as error:
            raise SpecError(
                f"{self.remote.url}: {name}: damaged ({first_line(error)}). "
                "Remove this object: the version before it counts then"
            ) from None

    def _mirror_runs(self, mirror: Path, objects: dict[str, RemoteObject]) -> None:
        """Have the reports of these runs in `mirror`, and of no others."""
        for folder in (mirror / "runs").iterdir():
            if folder.name not in objects:
                shutil.rmtree(folder)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda item: self._mirror_report(mirror, *item), objects.items()))

    def _mirror_ledger(self, mirror: Path, label: str) -> None:
        if (ledger := self._newest(label)[1]) is not None:
            ledger_path(mirror, ledger).parent.mkdir(parents=True, exist_ok=True)
            write_ledger(mirror, ledger)

    def _mirror_notes(self, mirror: Path, run_ids: Set[str]) -> None:
        """Bring the newest notes of these runs; those that cannot be read are named and left out."""
        newest = {item.name.split("/")[1]: item for item in self.remote.objects("notes/")}

        def bring(run_id: str, item: RemoteObject) -> None:
            path, stamp = mirror / "runs" / run_id / NOTES_NAME, item.modified_at.timestamp()
            if path.exists() and abs(path.stat().st_mtime - stamp) < 0.001:
                return
            try:
                save_notes(mirror, run_id, self._read_notes(item.name))
            except SpecError as error:
                log.warning("%s", error)
                return
            os.utime(path, (stamp, stamp))

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda pair: bring(*pair), [pair for pair in newest.items() if pair[0] in run_ids]))

    def _mirror_report(self, mirror: Path, run_id: str, item: RemoteObject) -> None:
        """Bring one report; one that is damaged is replaced by this machine's own, or named and left out."""
        path, stamp = mirror / "runs" / run_id / REPORT_NAME, item.modified_at.timestamp()
        if path.exists() and abs(path.stat().st_mtime - stamp) < 0.001:
            return
        try:
            content = self.remote.read(item.name)
        except DamagedObjectError as error:
            try:
                content = read_checksummed(self.root / "runs" / run_id / REPORT_NAME)
            except (OSError, ValueError):
                log.warning("%s: the run is left out. The machine that made it replaces it", error)
                return
            log.warning("%s: replaced by the report of this machine", error)
            self.remote.replace(item.name, content)
        if content is not None:
            path.parent.mkdir(exist_ok=True)
            write_checksummed(path, content)
            os.utime(path, (stamp, stamp))

    def _shared_record(self, stage: Stage, key: str) -> StageRecord | None:
        """The remote's sound record of `key`, or None; its files are not looked at."""
        try:
            content = self.remote.read(f"stages/{_place(stage, key)}")
            return None if content is None else sound_record(stage, key, content)
        except ValueError as error:
            place, said = _place(stage, key), on_one_line(error)
            log.warning("%s: %s: record %s: %s", stage.name, self.remote.url, place, said)
            return None

    def _problem_with(self, record: StageRecord) -> str | None:
        return next(self.problems(record.result), None)

    def _publish_for_all(self, stage: Stage, key: str, record: StageRecord) -> StageRecord:
        """Upload the files and then the record; returns the record that counts."""
        for ref in file_refs(record.result):
            if isinstance(ref, FileRef):
                self.remote.upload_blob(self.root / ref.path, ref)
        name, content = f"stages/{_place(stage, key)}", record.model_dump_json(indent=1).encode()
        if self.remote.create(name, content) or (shared := self._shared_record(stage, key)) == record:
            return record
        if shared is not None and self._problem_with(shared) is None:
            log.info("%s: another machine published it first; its result counts", stage.name)
            return self._keep(stage, key, shared)
        files = [ref for ref in file_refs(shared.result) if isinstance(ref, FileRef)] if shared else []
        if shared is None or not all(self.remote.has_blob(ref) for ref in files):
            log.warning("%s: %s: %s: replaced by a sound result", stage.name, self.remote.url, name)
            self.remote.replace(name, content)
        # Otherwise it refers to files outside of the store that only another machine has.
        return record

    def _replace_lost(self, record: StageRecord) -> None:
        """Upload what the remote has lost and this machine has; each file is asked for once in a process."""
        for ref in file_refs(record.result):
            if not isinstance(ref, FileRef) or ref.sha256 in self.remote.known:
                continue
            self.remote.known.add(ref.sha256)
            if not self.remote.has_blob(ref):
                log.warning("%s: %s: is missing: uploaded again", self.remote.url, blob_name(ref.sha256))
                self.remote.upload_blob(self.root / ref.path, ref)

    def _keep_record_of(self, ref: FileRef) -> None:
        """Have the record beside the file here first: `verify` takes a folder without one for damaged."""
        name = "/".join(ref.path.split("/")[:3])
        stage = STORED.get(name.split("/")[1])
        if stage is None or (self.root / name / RECORD_NAME).exists():
            return
        try:
            if content := self.remote.read(name):
                record = stage.record_type().model_validate_json(content)
                self._keep(stage, record.provenance.key, record)
        except ValueError as error:
            log.warning("%s: %s: %s", stage.name, name, first_line(error))

    def _keep(self, stage: Stage, key: str, record: StageRecord) -> StageRecord:
        """Have the remote's record here too. Files beside it that are not its own are replaced when read."""
        folder, content = self.folder(stage, key), record.model_dump_json(indent=1).encode()
        try:
            if read_checksummed(folder / RECORD_NAME) == content:
                return record
        except (OSError, ValueError):
            log.debug("%s: no sound record of %s here yet", stage.name, key)
        aside = self.root / "work" / FETCHED / uuid4().hex
        aside.mkdir(parents=True)
        write_checksummed(aside / RECORD_NAME, content)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not rename_folder(aside, folder):
            write_checksummed(folder / RECORD_NAME, content)
            shutil.rmtree(aside)
        return record


def _place(stage: Stage, key: str) -> str:
    return Store.relative_folder(stage, key).as_posix().removeprefix("stages/")
