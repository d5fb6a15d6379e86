"""Files are replaced whole: under many writers, after errors, and in an order that a power cut cannot
spoil.
"""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from stages.core.whole_files import TEMPORARY_FILES, write_whole


def write_many(path: Path, start, failures) -> None:
    start.wait(60)
    try:
        for number in range(100):
            write_whole(path, json.dumps({"by": os.getpid(), "number": number, "text": "x" * 1000}).encode())
    except OSError as error:
        failures.put(repr(error))


def test_processes_that_write_one_file_at_once_disturb_neither_one_another_nor_a_reader(
    tmp_path: Path,
) -> None:
    path, context = tmp_path / "error.json", multiprocessing.get_context("fork")
    path.write_text('{"text": ""}')
    start, failures = context.Event(), context.Queue()
    writers = [context.Process(target=write_many, args=(path, start, failures)) for _ in range(4)]
    for writer in writers:
        writer.start()
    start.set()
    while any(writer.is_alive() for writer in writers):
        assert len(json.loads(path.read_bytes())["text"]) in (0, 1000)
    for writer in writers:
        writer.join()
    assert failures.empty()
    assert [item.name for item in tmp_path.iterdir()] == ["error.json"]


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        events.append(
            "folder flushed"
            if stat.S_ISDIR(os.fstat(descriptor).st_mode)
            else f"{os.fstat(descriptor).st_size} bytes flushed"
        )
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        events.append("named")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    write_whole(tmp_path / "report.json", b"12345")
    assert events == ["5 bytes flushed", "named", "folder flushed"]


def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_whole(path, b"old")
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_leaves_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda source, target: os._exit(9))
    if (pid := os.fork()) == 0:
        write_whole(tmp_path / "step-1.safetensors", b"half")
    os.waitpid(pid, 0)
    assert len(list(tmp_path.glob(TEMPORARY_FILES))) == 1
