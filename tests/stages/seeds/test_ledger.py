"""The ledger: what is written is read, one writer at a time, and a plan that stays as declared."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from schemas.errors import SpecError
from schemas.seeds import Ledger, SeedEntry, SeedFigures
from stages.seeds.ledger import find_ledger, ledger_path, open_locked, read_ledger, write_ledger

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
    table = pq.read_table(ledger_path(tmp_path, book))
    assert table.column("seed").to_pylist() == [1, 2]
    assert table.column("val_loss_nats").to_pylist() == [None, 2.5]


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
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SpecError, match="damaged"), open_locked(tmp_path, ledger()):
        pass


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
