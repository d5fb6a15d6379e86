"""Object storage that several machines share: S3, Google Cloud Storage, Azure, or a folder, through obstore.

    blobs/<2>/<sha256>           a file of a result, uploaded once
    stages/<stage>/<key>         the record of a result, created once, after its blobs
    work/<stage>/<key>/<try>/    the newest checkpoint of an unfinished training
    runs/<run id>                the report of a run
    notes/<run id>/<number>      the versions of a run's notes, each created once; the highest number counts
    ledgers/<label>/<number>     the versions of a ledger, each created once; the highest number counts

Only blobs and files under work/ are plain. All else are documents: the sha256 of the content, a line feed,
the content. The only operation that machines meet in is "create unless it is there" (If-None-Match), so no
lock and no lease is needed. Credentials come from the environment, as obstore reads it; no message has one.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from schemas.errors import SpecError
from schemas.files import FileRef
from stages.core.whole_files import flush_to_disk
from stages.store.object_storage import open_objects, said_by_server

_PIECE_BYTES = 32 * 2**20  # each piece is tried again by itself
_MULTIPART_FROM_BYTES = 64 * 2**20


class RemoteError(OSError):
    """The remote store did not answer as it should. Worth another try."""


class DamagedObjectError(ValueError):
    """An object is not what its name or its first line says."""


@dataclass(frozen=True)
class RemoteObject:
    name: str
    num_bytes: int
    modified_at: datetime


def blob_name(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


@cache
def open_remote(url: str) -> "Remote":
    """The remote store at `url`, once it has shown that it keeps the first of two creates.

    Raises SpecError for an address that is none, a server that refuses us, and one that ignores
    If-None-Match: there two machines could both publish one result.
    """
    name, first = f"probe/{uuid4().hex}", b"the first one counts"
    try:
        objects = open_objects(url, make_folder=True)
        remote = Remote(objects, url)
        obstore.put(objects, name, first, mode="create")
    except (BaseError, OSError, ValueError) as error:
        raise SpecError(
            f"remote = {url}: cannot be used ({said_by_server(error)}). Check the address and the "
            "credentials in the environment; it must be readable and writable"
        ) from None
    try:
        if remote.create(name, b"") or bytes(obstore.get(objects, name).bytes()) != first:
            raise SpecError(
                f"remote = {url}: the server ignores create-only writes (If-None-Match: *), so that two "
                "machines could both publish one result. Use a server that honours them: AWS S3, Google "
                "Cloud Storage, Azure, Cloudflare R2, MinIO, Ceph or a folder (file://)"
            )
    finally:
        remote.delete([name])
    return remote


class Remote:
    """Objects by name. Methods raise RemoteError when the server fails."""

    def __init__(self, objects: ObjectStore, url: str) -> None:
        self._objects, self.url = objects, url
        self.known = set[str]()  # sha256 of blobs that were there when this process asked

    def create(self, name: str, content: bytes) -> bool:
        """Whether the document was made now; False: one of this name is there already, and stays."""
        try:
            with self._clear_errors(name):
                obstore.put(self._objects, name, _sealed(content), mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def replace(self, name: str, content: bytes) -> None:
        with self._clear_errors(name):
            obstore.put(self._objects, name, _sealed(content), use_multipart=False)

    def read(self, name: str) -> bytes | None:
        """The document's content; None if there is none. Raises DamagedObjectError."""
        try:
            with self._clear_errors(name):
                seal, _, content = bytes(obstore.get(self._objects, name).bytes()).partition(b"\n")
        except FileNotFoundError:
            return None
        if seal != hashlib.sha256(content).hexdigest().encode():
            raise DamagedObjectError(f"{self.url}: {name} is damaged: its sha256 is not the one in its head")
        return content

    def objects(self, prefix: str) -> list[RemoteObject]:
        """Every object whose name begins with `prefix`, which ends with a slash, by name."""
        with self._clear_errors(prefix):
            found = [item for page in obstore.list(self._objects, prefix) for item in page]
        listed = [RemoteObject(item["path"], item["size"], item["last_modified"]) for item in found]
        return sorted(listed, key=lambda item: item.name)

    def delete(self, names: Sequence[str]) -> None:
        """Take objects away; one that is not there is no error."""
        for name in names:
            with self._clear_errors(name):
                try:
                    obstore.delete(self._objects, name)
                except FileNotFoundError:
                    continue

    def has(self, name: str, num_bytes: int) -> bool:
        """Whether an object of this name and size is there. Its bytes are checked when they are read."""
        try:
            with self._clear_errors(name):
                return obstore.head(self._objects, name)["size"] == num_bytes
        except FileNotFoundError:
            return False

    def upload(self, content: Path | bytes, name: str, num_bytes: int) -> None:
        """Make a file an object unless it is there. An interrupted upload leaves nothing visible.

        Raises OSError when the file cannot be read.
        """
        if self.has(name, num_bytes):
            return
        with self._clear_errors(name):
            obstore.put(self._objects, name, content, use_multipart=num_bytes >= _MULTIPART_FROM_BYTES)

    def download(self, name: str, ref: FileRef, target: Path) -> None:
        """Make the object the file `target`, whole and checked, or not at all. Raises as `pieces` does."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                for piece in self.pieces(name, ref.num_bytes, ref.sha256):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        flush_to_disk(target.parent)

    def upload_blob(self, path: Path, ref: FileRef) -> None:
        self.upload(path, blob_name(ref.sha256), ref.num_bytes)

    def has_blob(self, ref: FileRef) -> bool:
        return self.has(blob_name(ref.sha256), ref.num_bytes)

    def pieces(self, name: str, num_bytes: int, sha256: str) -> Iterator[bytes]:
        """The object's bytes, checked at their end. Raises FileNotFoundError, DamagedObjectError.

        A damaged one is taken away first: "is there already" would keep it for ever.
        """
        digest = hashlib.sha256()
        found = self.has(name, num_bytes)
        for start in range(0, num_bytes if found else 0, _PIECE_BYTES):
            length = min(_PIECE_BYTES, num_bytes - start)
            with self._clear_errors(name):
                piece = bytes(obstore.get_range(self._objects, name, start=start, length=length))
            digest.update(piece)
            yield piece
        if not found:
            with self._clear_errors(name):
                size = obstore.head(self._objects, name)["size"]
            why = f"it has {size:,} bytes instead of {num_bytes:,}"
        elif digest.hexdigest() != sha256:
            why = f"its sha256 is not {sha256[:12]}…"
        else:
            return
        self.delete([name])
        raise DamagedObjectError(f"{self.url}: {name} is damaged ({why}) and was taken away")

    @contextmanager
    def _clear_errors(self, name: str) -> Iterator[None]:
        """The server's errors as RemoteError, without a secret; not the two that say what is there."""
        try:
            yield
        except AlreadyExistsError:
            raise
        except BaseError as error:
            raise RemoteError(f"remote = {self.url}: {name}: {said_by_server(error)}") from None


def _sealed(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content
