"""A record and its seal are replaced so that no crash between the writes looks like damage."""

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.core import checksummed
from stages.core.checksummed import read_checksummed, write_checksummed

OLD, NEW = b'{"a": 1}', b'{"a": 2}'


class Crash(Exception):
    """Stands for the end of the process: nothing after it is done."""


def crash_after(writes: int) -> Callable[[Path, bytes], None]:
    """The real writer, which does so many writes and no more."""
    done, write = 0, checksummed.write_whole

    def crashing(path: Path, content: bytes) -> None:
        nonlocal done
        if done == writes:
            raise Crash
        done += 1
        write(path, content)

    return crashing


@pytest.mark.parametrize(("writes", "expected"), [(0, OLD), (1, OLD), (2, NEW)])
def test_a_crash_at_any_write_leaves_the_old_record_or_the_new(
    tmp_path: Path, writes: int, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_checksummed(path, OLD)
    with monkeypatch.context() as patch:
        patch.setattr(checksummed, "write_whole", crash_after(writes))
        with pytest.raises(Crash):
            write_checksummed(path, NEW)
    assert read_checksummed(path) == expected
    write_checksummed(path, NEW)
    assert read_checksummed(path) == NEW
    assert (
        subprocess.run(
            ["sha256sum", "--strict", "-c", "report.sha256"], cwd=tmp_path, capture_output=True
        ).returncode
        == 0
    )
    assert len((tmp_path / "report.sha256").read_text().splitlines()) == 1


def test_a_crash_at_the_first_record_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksummed, "write_whole", crash_after(1))
    with pytest.raises(Crash):
        write_checksummed(tmp_path / "report.json", OLD)
    with pytest.raises(FileNotFoundError):
        read_checksummed(tmp_path / "report.json")


def test_a_damaged_record_stays_damaged_until_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_checksummed(path, OLD)
    path.write_bytes(b'{"a": 7}')
    with pytest.raises(ValueError, match=r"report\.sha256"):
        read_checksummed(path)
    write_checksummed(path, NEW)
    path.write_bytes(b'{"a": 7}')
    with pytest.raises(ValueError, match=r"report\.sha256"):
        read_checksummed(path)


def test_a_reader_beside_a_writer_meets_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_checksummed(path, OLD)
    writer = threading.Thread(
        target=lambda: [write_checksummed(path, content) for content in (NEW, OLD) * 30]
    )
    writer.start()
    while writer.is_alive():
        assert read_checksummed(path) in (OLD, NEW)
    writer.join()
