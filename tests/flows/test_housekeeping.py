"""gc takes away what no run needs and nothing else; verify finds what lies about.

On a copy of a finished run's store.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from schemas.errors import StageError
from schemas.seeds import Ledger, SeedEntry
from schemas.stages import STAGES
from stages.processes.locks import try_lock
from stages.seeds.ledger import ledger_path, open_locked, write_ledger
from stages.store.housekeeping import StoreInUseError, find_damage, find_unneeded, remove_unneeded
from stages.store.runs import list_reports, save_report
from stages.store.store import Store

LEDGER_OF_VERSION_1 = Path(__file__).parents[1] / "stages" / "seeds" / "version_1.parquet"


@pytest.fixture
def root(smoke_run: Any, smoke_store: Path, tmp_path: Path) -> Path:
    """A finished run of its own, an older run with another quantization's results, and what an
    interrupted run left.
    """
    root = tmp_path / "store"
    report = smoke_run.report
    for stage in report.stages:
        folder = Path("stages", stage.stage, stage.key[:32])
        shutil.copytree(smoke_store / folder, root / folder)
    save_report(root, report)
    old = next(stage for stage in report.stages if stage.stage == "package")
    key = "0" * 64
    shutil.copytree(root / "stages" / "package" / old.key[:32], root / "stages" / "package" / key[:32])
    others = tuple(stage.derive(key=key) if stage.stage == "package" else stage for stage in report.stages)
    save_report(root, report.derive(run_id="older", created_at="2001-01-01T00:00:00+00:00", stages=others))
    (root / "stages" / "merge" / ("f" * 32)).mkdir()
    (root / "work" / "train" / ("e" * 32) / "checkpoints").mkdir(parents=True)
    return root


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


def found(items: list, store: Store) -> set[str]:
    return {item.path.relative_to(store.root).as_posix() for item in items}


ABANDONED = {f"stages/merge/{'f' * 32}", f"work/train/{'e' * 32}"}
OLDER = {"runs/older", f"stages/package/{'0' * 32}"}


def test_what_no_run_names_is_listed_and_only_that(store: Store) -> None:
    assert found(find_unneeded(store, older_than_hours=0), store) == ABANDONED
    assert found(find_unneeded(store, keep_runs=1, older_than_hours=0), store) == ABANDONED | OLDER
    assert find_unneeded(store) == []  # all of it is younger than a day


def test_listing_takes_nothing_away_and_removing_takes_what_was_listed(store: Store) -> None:
    listed = find_unneeded(store, 1, 0)
    assert all(item.path.exists() for item in listed)
    assert remove_unneeded(store, 1, 0) == listed
    assert not any(item.path.exists() for item in listed)
    assert [report.run_id for report in list_reports(store.root)] != []
    assert list(find_damage(store)) == []
    assert find_unneeded(store, 1, 0) == []


LEFT_OVER = {
    "work/removed-1234/abc": "what an interrupted removal left",
    "work/merge/abc.damaged-1234/model": "a damaged result, made again since",
    "work/merge/abc/model": "an unfinished result; the same run would go on with it",
    "recheck/demo-12345678-seed1/runs/x/report.json": (
        "the store of a recheck that was interrupted or gave other figures"
    ),
    "cache/matplotlib/fonts.json": "a library's cache; it is filled again when needed",
    "runs/interrupted/report.sha256": "a run that was interrupted before its report was written",
    "runs/older/.report.json.12-abcdef01.tmp": "a file whose writer was interrupted",
    "ledgers/demo-12345678/.ledger.json.12-abcdef01.tmp": "a file whose writer was interrupted",
    "locks/train-abc.lock": "a lock that nobody holds",
}


@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_was_left_over_is_listed_for_what_it_is_and_taken_away(name: str, tmp_path: Path) -> None:
    store, path = Store(tmp_path), tmp_path / name
    if name.startswith("runs/older"):
        path.parent.mkdir()
        (path.parent / "report.json").touch()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("left over")
    assert find_unneeded(store) == []  # younger than a day
    [item] = find_unneeded(store, older_than_hours=0)
    assert item.reason == LEFT_OVER[name]
    assert path.is_relative_to(item.path)
    assert remove_unneeded(store, older_than_hours=0) == [item]
    assert not item.path.exists()
    assert list(tmp_path.glob("work/removed-*")) == []
    assert find_unneeded(store, older_than_hours=0) == []


def test_what_lies_in_something_unneeded_is_listed_with_that_alone(tmp_path: Path) -> None:
    (tmp_path / "runs" / "interrupted").mkdir(parents=True)
    (tmp_path / "runs" / "interrupted" / ".report.json.12-abcdef01.tmp").touch()
    store = Store(tmp_path)
    assert found(remove_unneeded(store, older_than_hours=0), store) == {"runs/interrupted"}


def test_a_lock_in_use_is_neither_listed_nor_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock(STAGES["train"], "k" * 64):
        assert find_unneeded(store, older_than_hours=0) == []
        assert remove_unneeded(store, older_than_hours=0) == []
        assert try_lock(tmp_path / "locks" / f"train-{'k' * 32}.lock") is None
    assert sorted(path.name for path in (tmp_path / "locks").iterdir()) == ["users.lock"]


def test_listing_beside_a_run_that_goes_on_does_not_stop_at_what_just_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path = Store(tmp_path), tmp_path / "work" / "train" / "abc" / "half"
    path.parent.mkdir(parents=True)
    path.touch()
    lstat = os.lstat

    def gone(item: str) -> os.stat_result:
        path.unlink(missing_ok=True)
        return lstat(item)

    monkeypatch.setattr(os, "lstat", gone)
    assert find_unneeded(store, older_than_hours=0) == []


def ledger_of(*run_ids: str) -> Ledger:
    entries = tuple(
        SeedEntry(
            seed=seed,
            status="failed",
            run_id=run_id,
            run_name="demo",
            created_at="2001-01-01T00:00:00+00:00",
            code_sha256="",
        )
        for seed, run_id in enumerate(run_ids)
    )
    return Ledger(name="demo", configuration="c" * 64, first_seed=0, max_seeds=5, entries=entries)


def written(store: Store, ledger: Ledger) -> Path:
    """The file of `ledger`, written as a seed validation writes it."""
    with open_locked(store.root, ledger):
        write_ledger(store.root, ledger)
    return ledger_path(store.root, ledger)


def test_a_run_that_a_ledger_names_is_kept_with_its_results(store: Store) -> None:
    written(store, ledger_of("another", "older"))
    assert found(find_unneeded(store, keep_runs=0, older_than_hours=0), store) & OLDER == set()
    remove_unneeded(store, keep_runs=0, older_than_hours=0)
    assert all((store.root / path).exists() for path in OLDER)


def test_a_run_that_a_ledger_of_the_earlier_version_names_is_kept_too(store: Store) -> None:
    folder = store.root / "ledgers" / "demo-cccccccc"
    folder.mkdir(parents=True)
    shutil.copy(LEDGER_OF_VERSION_1, folder / "ledger.parquet")
    assert not any("ledgers" in problem for problem in find_damage(store))
    assert found(find_unneeded(store, keep_runs=0, older_than_hours=0), store) & OLDER == set()
    remove_unneeded(store, keep_runs=0, older_than_hours=0)
    assert all((store.root / path).exists() for path in OLDER)


def test_an_unreadable_ledger_stops_everything_and_is_named_as_damage(store: Store) -> None:
    path = written(store, ledger_of("older"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(StageError, match=r"demo-cccccccc/ledger\.json.*Restore it.*nothing is removed"):
        remove_unneeded(store, 0, 0)
    assert (store.root / "runs" / "older").exists()
    assert any(str(path) in problem for problem in find_damage(store))


def test_while_the_store_is_open_elsewhere_nothing_is_removed(store: Store) -> None:
    hold = (
        f"import sys; from stages.store.store import Store; s = Store({str(store.root)!r}); "
        "print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(StoreInUseError, match="a run is in progress"):
        remove_unneeded(store, 0, 0)
    assert (store.root / "runs" / "older").exists()
    other.kill()
    other.wait()
    assert remove_unneeded(store, 0, 0) != []


def test_the_commands(root: Path) -> None:
    def fairway(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*options, "--store", str(root)], env={"COLUMNS": "200"})
        answer = result.exit_code, result.stdout
        del result
        gc.collect()  # a real command's process ends, and lets go of the store
        return answer

    _, listed = fairway("gc", "--older-than", "0", "--json")
    assert {Path(item["path"]).parent.name for item in json.loads(listed)["items"]} == {"merge", "train"}
    assert "Nothing was removed" in fairway("gc", "--older-than", "0")[1]
    assert fairway("verify")[0] == 1  # the empty folder under stages/merge has no record
    # The older run is made up: it goes too.
    assert fairway("gc", "--remove", "--older-than", "0", "--keep-runs", "1")[0] == 0
    code, told = fairway("verify")
    assert (code, "all sound" in told) == (0, True)
    save = next((root / "runs").glob("*/report.json"))
    save.write_text(save.read_text().replace('"seconds"', '"secondz"', 1))
    code, told = fairway("verify")
    assert (code, "report.json" in told) == (1, True)
