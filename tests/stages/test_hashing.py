import hashlib
from pathlib import Path

import pytest

from stages.hashing import FileHashes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def test_an_unchanged_file_is_read_once(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = FileHashes(tmp_path / "hashes.sqlite")
    digest = hashlib.sha256(b"content").hexdigest()
    assert hashes.sha256(file) == digest
    monkeypatch.setattr("hashlib.file_digest", lambda *a: pytest.fail("the file was read again"))
    assert FileHashes(tmp_path / "hashes.sqlite").sha256(file) == digest


def test_a_changed_file_is_read_again(tmp_path: Path, file: Path) -> None:
    hashes = FileHashes(tmp_path / "hashes.sqlite")
    before = hashes.sha256(file)
    file.write_bytes(b"Content")
    assert hashes.sha256(file) != before
    assert "is damaged" in str(hashes.problem_with(file, 7, before))


def test_a_broken_memory_costs_time_and_nothing_else(tmp_path: Path, file: Path) -> None:
    database = tmp_path / "hashes.sqlite"
    database.write_bytes(b"this is no database" * 100)
    assert FileHashes(database).sha256(file) == hashlib.sha256(b"content").hexdigest()


def test_problems_are_named(tmp_path: Path, file: Path) -> None:
    hashes = FileHashes(None)
    digest = hashes.sha256(file)
    assert hashes.problem_with(file, 7, digest) is None
    assert "7 bytes, recorded were 8" in str(hashes.problem_with(file, 8, digest))
    assert "is missing" in str(hashes.problem_with(tmp_path / "nothing", 7, digest))
    assert "is not a file" in str(hashes.problem_with(tmp_path, 7, digest))
