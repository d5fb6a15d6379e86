"""Finding a run by what a person types."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import SpecError
from stages.core import checksummed
from stages.core.checksummed import write_checksummed
from stages.store import runs
from stages.store.runs import choose_run, find_run, list_reports, load_report, save_report


@pytest.fixture
def store(tmp_path: Path, smoke_run: Any) -> Path:
    """Three runs: two of one name, the newest of another."""
    for run_id, name, created_at in (
        ("aaaa-1", "demo-seed1-11111111", "2026-01-01T00:00:00+00:00"),
        ("aaaa-2", "demo-seed1-11111111", "2026-01-02T00:00:00+00:00"),
        ("bbbb-3", "demo-seed2-22222222", "2026-01-03T00:00:00+00:00"),
    ):
        save_report(tmp_path, smoke_run.report.derive(run_id=run_id, name=name, created_at=created_at))
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "run_id"),
    [
        ("last", "bbbb-3"),
        ("aaaa-1", "aaaa-1"),
        ("bbbb", "bbbb-3"),
        ("demo-seed1-11111111", "aaaa-2"),
        ("demo-seed1", "aaaa-2"),
        ("demo-seed2", "bbbb-3"),
    ],
)
def test_id_name_beginning_or_last(wanted: str, run_id: str, store: Path) -> None:
    assert find_run(store, wanted).run_id == run_id


def test_last_fits_its_limit_where_that_is_asked(
    store: Path, smoke_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    report = smoke_run.report
    over = report.size.derive(limit_bytes=1, margin_bytes=1 - report.size.total_bytes, fits=False)
    created_at = "2026-01-04T00:00:00+00:00"
    save_report(
        store, report.derive(run_id="cccc-4", name="demo-seed3-33333333", created_at=created_at, size=over)
    )
    assert find_run(store, "last").run_id == "cccc-4"
    assert caplog.messages == []
    assert find_run(store, "last", fitting=True).run_id == "bbbb-3"
    [told] = caplog.messages
    assert "demo-seed3-33333333 is over its limit; taken is demo-seed2-22222222" in told
    assert find_run(store, "cccc", fitting=True).run_id == "cccc-4"


def test_without_a_run_that_fits_the_last_is_refused(tmp_path: Path, smoke_run: Any) -> None:
    report = smoke_run.report
    over = report.size.derive(limit_bytes=1, margin_bytes=1 - report.size.total_bytes, fits=False)
    save_report(tmp_path, report.derive(size=over))
    with pytest.raises(SpecError, match=r"RUN = last: no run of the store .* is within its limit"):
        find_run(tmp_path, "last", fitting=True)


def test_a_whole_id_reads_one_report(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = runs.load_report
    monkeypatch.setattr(runs, "load_report", lambda root, run_id: read.append(run_id) or real(root, run_id))
    assert find_run(store, "aaaa-1").run_id == "aaaa-1"
    assert read == ["aaaa-1"]


def test_among_reports_at_hand_the_same_run_is_found(store: Path) -> None:
    reports = list_reports(store)
    for wanted in ("last", "aaaa-1", "bbbb", "demo-seed1"):
        assert choose_run(store, reports, wanted) == find_run(store, wanted)


@pytest.mark.parametrize("wanted", ["", ".", "..", "../runs/aaaa-1", "/", "a\0b", "x" * 300])
def test_what_is_no_name_is_no_run(wanted: str, store: Path) -> None:
    with pytest.raises(SpecError, match="no such run"):
        find_run(store, wanted)


def test_a_beginning_of_several_names_lists_them(store: Path) -> None:
    with pytest.raises(SpecError, match=r"demo-seed1-11111111, demo-seed2-22222222"):
        find_run(store, "demo")


def test_an_unknown_run_is_answered_with_the_nearest(store: Path) -> None:
    with pytest.raises(SpecError, match="demo-seed2-22222222"):
        find_run(store, "demo-seed2-22222223")


def test_what_was_saved_is_read_back_equal(store: Path, smoke_run: Any) -> None:
    path = save_report(store, smoke_run.report)
    assert load_report(store, smoke_run.report.run_id) == smoke_run.report
    assert sorted(item.name for item in path.parent.iterdir()) == ["report.json", "report.sha256"]


def test_a_crash_while_a_report_is_replaced_leaves_the_old_one_or_the_new(
    store: Path, smoke_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, old = checksummed.write_whole, load_report(store, "aaaa-1")
    new = smoke_run.report.derive(run_id="aaaa-1", name="again")
    for allowed, expected in ((1, old), (2, new)):
        writes: list[Path] = []

        def crashing(path: Path, content: bytes, writes: list[Path] = writes, allowed: int = allowed) -> None:
            writes.append(path)
            if len(writes) > allowed:
                raise KeyboardInterrupt
            write(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(checksummed, "write_whole", crashing)
            with pytest.raises(KeyboardInterrupt):
                save_report(store, new)
        assert load_report(store, "aaaa-1") == expected


def test_a_damaged_report_is_named_and_does_not_hide_the_others(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = store / "runs" / "aaaa-1" / "report.json"
    path.write_text(path.read_text()[:-20])
    assert [report.run_id for report in list_reports(store)] == ["aaaa-2", "bbbb-3"]
    assert "aaaa-1" in caplog.text
    with pytest.raises(SpecError, match="damaged"):
        load_report(store, "aaaa-1")


def test_a_report_of_another_version_says_so_and_what_to_do(store: Path) -> None:
    path = store / "runs" / "aaaa-1" / "report.json"
    older = {
        name: value
        for name, value in json.loads(path.read_text()).items()
        if name not in ("schema_version", "audit")
    }
    write_checksummed(path, json.dumps(older).encode())
    with pytest.raises(
        SpecError, match=r"records of version 1, this one reads \d+\)\. Run its settings again"
    ):
        load_report(store, "aaaa-1")


def test_a_run_without_report_is_no_run(store: Path) -> None:
    (store / "runs" / "cccc").mkdir()
    assert load_report(store, "cccc") is None
    assert len(list_reports(store)) == 3
