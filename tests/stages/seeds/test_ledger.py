"""The ledger: what is written is read, one writer at a time, and a plan that stays as declared."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from schemas.errors import SpecError
from schemas.seeds import Ledger, SeedEntry, SeedFigures
from stages.core.checksummed import write_checksummed
from stages.seeds.ledger import (
    find_ledger,
    ledger_files,
    ledger_path,
    open_locked,
    read_ledger,
    write_ledger,
)

HOLD = """
import sys, time
from pathlib import Path
from schemas.seeds import Ledger
from stages.seeds.ledger import open_locked
with open_locked(Path(sys.argv[1]), Ledger(name="demo", configuration="c" * 64, first_seed=1, max_seeds=5)):
    print("held", flush=True)
    time.sleep(600)
"""


def ledger(**changes: object) -> Ledger:
    return Ledger(name="demo", configuration="c" * 64, first_seed=1, max_seeds=5).derive(**changes)


def entry(seed: int, loss: float | None = 2.5) -> SeedEntry:
    figures = SeedFigures(
        val_loss_nats=loss or 0.0,
        val_bpb_last=1.3,
        val_bpb_merged=1.2,
        val_bpb_quantized=1.25,
        val_bpb_quantized_sliding=None,
        num_targets=100,
        num_bytes=250,
        total_bytes=1000,
        blob_sha256="a" * 64,
    )
    return SeedEntry(
        seed=seed,
        status="failed" if loss is None else "completed",
        run_id=f"run-{seed}",
        run_name=f"demo-seed{seed}",
        created_at="2026-01-01T00:00:00+00:00",
        code_sha256="b" * 64,
        error="diverged" if loss is None else "",
        figures=None if loss is None else figures,
    )


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    book = ledger().with_entry(entry(2)).with_entry(entry(1, None))
    with open_locked(tmp_path, ledger()):
        write_ledger(tmp_path, book)
    assert read_ledger(ledger_path(tmp_path, book)) == book
    assert find_ledger(tmp_path, "demo") == book
    stored = json.loads(ledger_path(tmp_path, book).read_text())
    assert stored["schema_version"] == 2
    assert [item["seed"] for item in stored["ledger"]["entries"]] == [1, 2]
    assert stored["ledger"]["entries"][1]["figures"]["val_loss_nats"] == 2.5


def version_1(store: Path) -> Path:
    """A store with a ledger as Fairway wrote it until version 2: seed 1 completed, seed 2 failed."""
    path = ledger_path(store, ledger()).with_name("ledger.parquet")
    path.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("version_1.parquet"), path)
    return path


def test_a_parquet_ledger_is_read_where_it_lies_and_taken_over_when_seeds_are_added(tmp_path: Path) -> None:
    parquet = version_1(tmp_path)
    assert ledger_files(tmp_path) == [parquet]
    before = find_ledger(tmp_path, "demo")
    assert parquet.exists()
    assert [item.run_id for item in before.entries] == ["another", "older"]
    assert before.losses() == [2.5]
    assert before.next_seeds(1) == [2, 3]
    with open_locked(tmp_path, ledger()) as book:
        assert book == before
        assert not parquet.exists()
        write_ledger(tmp_path, book.with_entry(entry(2)))
    assert ledger_files(tmp_path) == [ledger_path(tmp_path, ledger())]
    assert find_ledger(tmp_path, "demo").losses() == [2.5, 2.5]


def test_a_takeover_that_a_kill_interrupted_is_finished_with_the_newer_file(tmp_path: Path) -> None:
    parquet, newer = version_1(tmp_path), ledger().with_entry(entry(1)).with_entry(entry(3))
    write_ledger(tmp_path, newer)
    assert find_ledger(tmp_path, "demo") == newer
    with open_locked(tmp_path, ledger()) as book:
        assert book == newer
    assert not parquet.exists()
    assert find_ledger(tmp_path, "demo") == newer


def test_a_seal_that_a_kill_left_alone_hides_no_ledger_and_is_none(tmp_path: Path) -> None:
    """The seal is written first: without a ledger beside it, nothing was recorded yet."""
    ledger_path(tmp_path, ledger()).parent.mkdir(parents=True)
    ledger_path(tmp_path, ledger()).with_suffix(".sha256").write_text("0" * 64)
    assert ledger_files(tmp_path) == []
    with open_locked(tmp_path, ledger()) as book:
        assert book == ledger()


def test_the_next_seeds_are_failed_ones_and_then_new_ones_up_to_the_maximum() -> None:
    book = ledger().with_entry(entry(1)).with_entry(entry(2, None)).with_entry(entry(3))
    assert book.next_seeds(1) == [2, 4]
    assert book.next_seeds(9) == [2, 4, 5]
    assert book.with_entry(entry(2)).next_seeds(0) == []
    assert book.losses() == [2.5, 2.5]


def test_a_plan_cannot_be_changed_after_looking(tmp_path: Path) -> None:
    with open_locked(tmp_path, ledger()):
        write_ledger(tmp_path, ledger().with_entry(entry(1)))
    with (
        pytest.raises(SpecError, match=r"max_seeds = 9: .* declared with 5"),
        open_locked(tmp_path, ledger(max_seeds=9)),
    ):
        pass


def test_another_configuration_has_another_ledger(tmp_path: Path) -> None:
    assert ledger_path(tmp_path, ledger()) != ledger_path(tmp_path, ledger(configuration="d" * 64))


def test_a_damaged_ledger_is_never_begun_anew(tmp_path: Path) -> None:
    with open_locked(tmp_path, ledger()):
        write_ledger(tmp_path, ledger().with_entry(entry(1)))
    path = ledger_path(tmp_path, ledger())
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b"2.5", b"2.4"))
    with (
        pytest.raises(SpecError, match=r"ledger\.json: damaged \(its sha256"),
        open_locked(tmp_path, ledger()),
    ):
        pass
    path.write_bytes(sound)
    path.with_suffix(".sha256").unlink()
    with pytest.raises(SpecError, match=r"ledger\.sha256 is missing"), open_locked(tmp_path, ledger()):
        pass


def test_a_damaged_parquet_ledger_is_neither_taken_over_nor_removed(tmp_path: Path) -> None:
    path = version_1(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SpecError, match=r"ledger\.parquet: damaged"), open_locked(tmp_path, ledger()):
        pass
    assert path.exists()


def test_a_ledger_of_a_later_fairway_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = ledger_path(tmp_path, ledger())
    path.parent.mkdir(parents=True)
    write_checksummed(path, b'{"schema_version": 3, "ledger": {}}')
    with pytest.raises(SpecError, match="a ledger of version 3, this Fairway reads 2"):
        read_ledger(path)


def test_an_unknown_ledger_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with open_locked(tmp_path, ledger()):
        write_ledger(tmp_path, ledger())
    with pytest.raises(SpecError, match="against = other: no such ledger; ledgers: demo-cccccccc"):
        find_ledger(tmp_path, "other")


def test_a_second_claim_waits_and_a_killed_holder_frees_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stages")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    got: list[float] = []

    def second() -> None:
        with open_locked(tmp_path, ledger()):
            got.append(time.monotonic())

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.3)
    assert got == []
    holder.kill()
    holder.wait()
    thread.join(10)
    assert len(got) == 1
    assert f"waiting for process {holder.pid}" in caplog.text
