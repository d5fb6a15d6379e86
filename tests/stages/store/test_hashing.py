import hashlib
import os
from pathlib import Path

import pytest

from stages.store.hashing import FileHashes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def test_an_unchanged_file_is_read_once(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = FileHashes(tmp_path / "hashes.sqlite", 0)
    digest = hashlib.sha256(b"content").hexdigest()
    assert hashes.sha256(file) == digest
    monkeypatch.setattr("hashlib.file_digest", lambda *a: pytest.fail("the file was read again"))
    assert FileHashes(tmp_path / "hashes.sqlite", 0).sha256(file) == digest


def test_a_changed_file_is_read_again(tmp_path: Path, file: Path) -> None:
    hashes = FileHashes(tmp_path / "hashes.sqlite", 0)
    before = hashes.sha256(file)
    file.write_bytes(b"Content")
    assert hashes.sha256(file) != before
    assert "is damaged" in str(hashes.problem_with(file, 7, before))


def test_a_broken_memory_costs_time_and_nothing_else(tmp_path: Path, file: Path) -> None:
    database = tmp_path / "hashes.sqlite"
    database.write_bytes(b"this is no database" * 100)
    assert FileHashes(database, 0).sha256(file) == hashlib.sha256(b"content").hexdigest()


def test_a_broken_memory_is_begun_anew(tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = tmp_path / "hashes.sqlite"
    database.write_bytes(b"this is no database" * 100)
    hashes = FileHashes(database, 0)
    hashes.sha256(file)
    assert "cannot be used" in caplog.text
    caplog.clear()
    hashes.sha256(file)
    assert not caplog.text


def test_a_byte_that_the_disk_flipped_is_found_in_a_small_file_and_in_a_large_one_once_forgotten(
    tmp_path: Path, file: Path
) -> None:
    for from_bytes, found in ((8, True), (0, False)):
        hashes = FileHashes(tmp_path / f"hashes-{from_bytes}.sqlite", from_bytes)
        file.write_bytes(b"content")
        digest, times = hashes.sha256(file), file.stat()
        file.write_bytes(b"cOntent")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert (hashes.sha256(file) != digest) is found
        hashes.forget(file)
        assert hashes.sha256(file) != digest


def test_problems_are_named(tmp_path: Path, file: Path) -> None:
    hashes = FileHashes(None)
    digest = hashes.sha256(file)
    assert hashes.problem_with(file, 7, digest) is None
    assert "7 bytes instead of the recorded 8" in str(hashes.problem_with(file, 8, digest))
    assert "is missing" in str(hashes.problem_with(tmp_path / "nothing", 7, digest))
    assert "is not a file" in str(hashes.problem_with(tmp_path, 7, digest))
