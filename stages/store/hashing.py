"""sha256 of files, remembered for large ones, so that a cached run does not wait for hashing."""

import hashlib
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

log = logging.getLogger(__name__)


REMEMBERED_FROM_BYTES = 16 * 2**20


class FileHashes:
    """sha256 of files; remembered in a SQLite file if one is given.

    A file of at least `remembered_from_bytes` is read again only if its size, modification time (ns) or inode
    changed. So `fairway verify`, not a run, finds a byte that the disk flipped in it. Smaller files are read
    every time; `FileHashes(None)` reads all files every time.
    """

    def __init__(self, database: Path | None, remembered_from_bytes: int = REMEMBERED_FROM_BYTES) -> None:
        self._database, self._remembered_from = database, remembered_from_bytes

    @property
    def folder(self) -> Path | None:
        """Where the memory lies: a disk that large files may be put on; None without one."""
        return None if self._database is None else self._database.parent

    def sha256(self, path: Path) -> str:
        """Hex digest of the file's content. Raises OSError when it cannot be read."""
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        remembered = status.st_size >= self._remembered_from
        if remembered and (known := self._remembered(path, stamp)) is not None:
            return known
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if remembered:
            self._remember(path, stamp, digest)
        return digest

    def problem_with(self, path: Path, num_bytes: int, sha256: str) -> str | None:
        """How the file differs from its recorded size and digest, as a message; None if it does not."""
        try:
            size = path.stat().st_size
            if not path.is_file():
                return f"{path} is not a file"
            if size != num_bytes:
                return f"{path} has {size:,} bytes instead of the recorded {num_bytes:,}"
            if self.sha256(path) != sha256:
                return f"{path} is damaged: its sha256 is not the recorded {sha256[:12]}…"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error}"
        return None

    def forget(self, path: Path) -> None:
        """Read the file again next time, because a disk can flip a byte without changing size or times."""
        if self._database is None or not self._database.exists():
            return
        try:
            with closing(self._connect()) as connection, connection:
                connection.execute("DELETE FROM hashes WHERE path = ?", (str(path.resolve()),))
        except sqlite3.Error as error:
            self._start_anew(error)

    def _start_anew(self, error: sqlite3.Error) -> None:
        """Replace an unreadable memory by an empty one; files are then hashed again."""
        log.warning("the memory of file hashes %s cannot be used (%s)", self._database, error)
        if self._database is not None and not isinstance(
            error, sqlite3.OperationalError
        ):  # that one is a full disk or a lock
            self._database.unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        assert self._database is not None
        connection = sqlite3.connect(self._database, timeout=10)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size INT, mtime_ns INT, "
            "inode INT, sha256 TEXT)"
        )
        return connection

    def _remembered(self, path: Path, stamp: tuple[int, int, int]) -> str | None:
        if self._database is None or not self._database.exists():
            return None
        try:
            with closing(self._connect()) as connection:
                row = connection.execute(
                    "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ? AND inode = ?",
                    (str(path.resolve()), *stamp),
                ).fetchone()
        except sqlite3.Error as error:
            self._start_anew(error)
            return None
        return row[0] if row else None

    def _remember(self, path: Path, stamp: tuple[int, int, int], digest: str) -> None:
        if self._database is None:
            return
        try:
            with closing(self._connect()) as connection, connection:
                connection.execute(
                    "REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", (str(path.resolve()), *stamp, digest)
                )
        except sqlite3.Error as error:
            self._start_anew(error)
