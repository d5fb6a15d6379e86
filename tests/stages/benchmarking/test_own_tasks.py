"""The folder of one's own tasks: what counts for the key, and what is refused."""

from pathlib import Path

import pytest

from schemas.base import fingerprint
from schemas.errors import SpecError
from stages.benchmarking import own_tasks
from stages.benchmarking.own_tasks import find_own_tasks
from stages.store.hashing import FileHashes

HASHES = FileHashes(None)


def tasks_in(folder: Path, text: str = "task: mine\n") -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    (folder / "data" / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    return folder


def test_content_counts_and_place_does_not(tmp_path: Path) -> None:
    first = find_own_tasks(tasks_in(tmp_path / "a"), HASHES, "include_path")
    moved = find_own_tasks(tasks_in(tmp_path / "b"), HASHES, "include_path")
    other = find_own_tasks(tasks_in(tmp_path / "c", "task: other\n"), HASHES, "include_path")
    assert [item.name for item in first.files] == ["mine.yaml", "data/rows.jsonl"]
    assert fingerprint(first) == fingerprint(moved) != fingerprint(other)
    (tmp_path / "b" / "data" / "rows.jsonl").write_text('{"more": 1}\n', encoding="utf-8")
    assert fingerprint(find_own_tasks(tmp_path / "b", HASHES, "include_path")) != fingerprint(first)


def test_hidden_files_and_those_of_python_do_not_count(tmp_path: Path) -> None:
    folder = tasks_in(tmp_path / "a")
    before = find_own_tasks(folder, HASHES, "include_path")
    for name in (".git/config", "__pycache__/x.pyc", ".hidden.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x", encoding="utf-8")
    assert find_own_tasks(folder, HASHES, "include_path") == before


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for name, reason in (("nowhere", "no such folder"), ("empty", "has no .*yaml file")):
        with pytest.raises(SpecError, match=rf"include_path = .*{name}: {reason}"):
            find_own_tasks(tmp_path / name, HASHES, "include_path")
    monkeypatch.setattr(own_tasks, "MOST_FILES", 1)
    with pytest.raises(SpecError, match="more than 1 files"):
        find_own_tasks(tasks_in(tmp_path / "many"), HASHES, "include_path")
