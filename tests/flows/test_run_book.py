"""The run book: notes beside reports, tables of runs, forgetting runs, and a stage computed again."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from typer.testing import CliRunner, Result

from flows.cli.main import app
from flows.pipeline import pipeline
from flows.server.runs import change_tags
from schemas.errors import SpecError, StageError
from schemas.runtime import RunOptions
from schemas.seeds import Ledger, SeedEntry
from schemas.stages import STAGES
from stages.core.checksummed import write_checksummed
from stages.seeds.ledger import open_locked, write_ledger
from stages.store.housekeeping import StoreInUseError, find_damage, find_forgotten, find_unneeded, forget
from stages.store.notes import add_note, add_tags, load_notes, pin
from stages.store.runs import list_reports, save_report
from stages.store.store import Store

OTHER = "0" * 64


def fairway(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})


@pytest.fixture
def store(smoke_run: Any, root: Path) -> Store:
    """The smoke run, and a newer run `other` with an audit setting and a package of its own."""
    report = smoke_run.report
    made = _key(report, "package")
    packages = root / "stages" / "package"
    shutil.copytree(packages / made[:32], packages / OTHER[:32])
    record_path = packages / OTHER[:32] / "record.json"
    record = record_path.read_text(encoding="utf-8").replace(made, OTHER).replace(made[:32], OTHER[:32])
    write_checksummed(record_path, record.encode())
    keys = tuple(stage.derive(key=OTHER) if stage.stage == "package" else stage for stage in report.stages)
    package = report.package.model_dump()
    moved = json.loads(json.dumps(package).replace(made[:32], OTHER[:32]))
    spec = report.spec.derive(audit=report.spec.audit.derive(gap_tokens=0))
    later = {"run_id": "other", "name": "smoke-other", "created_at": "2999-01-01T00:00:00+00:00"}
    save_report(root, report.derive(stages=keys, package=moved, spec=spec, **later))
    return Store(root)


def _key(report: Any, stage: str) -> str:
    return next(item.key for item in report.stages if item.stage == stage)


def _paths(items: list[Any], store: Store) -> set[str]:
    return {item.path.relative_to(store.root).as_posix() for item in items}


def test_notes_tags_and_pin_by_command(store: Store) -> None:
    place = ("--store", store.root, "--json")
    fairway("note", "last", "the first", *place)
    fairway("note", "other", "the second: größer", *place)
    told = json.loads(fairway("note", "other", "--remove", 1, *place).stdout)
    assert [note["text"] for note in told["notes"]] == ["the second: größer"]
    assert json.loads(fairway("tag", "other", "a", "b", *place).stdout)["tags"] == ["a", "b"]
    assert json.loads(fairway("tag", "other", "a", "--remove", *place).stdout)["tags"] == ["b"]
    assert json.loads(fairway("pin", "other", *place).stdout)["pinned"] is True
    assert "pinned, b" in fairway("show", "other", "--store", store.root).stdout
    for wrong, named in (
        (("tag", "other", "two words"), "TAG = two words"),
        (("note", "other", " "), "TEXT"),
    ):
        result = fairway(*wrong, "--store", store.root)
        assert (result.exit_code, named in result.stderr) == (2, True)
    assert list(find_damage(store)) == []


def test_notes_change_neither_report_nor_record(store: Store) -> None:
    before = {path: path.read_bytes() for path in store.root.glob("*/**/re*.json")}
    run = list_reports(store.root)[-1]
    add_note(store, run, "text")
    add_tags(store, run, ["tag"])
    pin(store, run)
    assert {path: path.read_bytes() for path in store.root.glob("*/**/re*.json")} == before


def test_a_pinned_run_survives_gc_and_forget(store: Store) -> None:
    _, other = list_reports(store.root)
    pin(store, other)
    options = ("gc", "--remove", "--keep-runs", 0, "--older-than", 0, "--store", store.root)
    root = store.root
    store.close()
    assert fairway(*options).exit_code == 0
    kept = Store(root)
    assert [report.run_id for report in list_reports(root)] == ["other"]
    assert list(find_damage(kept)) == []
    with pytest.raises(SpecError, match="RUN = smoke-other: is pinned"):
        forget(kept, [other])
    (root / "runs" / "other" / "report.json").unlink()
    with pytest.raises(StageError, match="the run is pinned, and its report cannot be read"):
        find_unneeded(kept, 0, 0)


def test_forget_takes_what_only_that_run_needs(store: Store, smoke_run: Any) -> None:
    _, other = list_reports(store.root)
    add_note(store, other, "goes with the run")
    listed = find_forgotten(store, [other])
    assert _paths(listed, store) == {"runs/other", f"stages/package/{OTHER[:32]}"}
    assert forget(store, [other]) == listed
    assert [report.run_id for report in list_reports(store.root)] == [smoke_run.report.run_id]
    assert list(find_damage(store)) == []
    assert not any((store.root / "work").iterdir())
    forget(store, [smoke_run.report])
    assert not list(store.root.glob("stages/*/*"))


def test_forget_is_refused_while_a_run_is_in_progress(store: Store) -> None:
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
        forget(store, list_reports(store.root))
    other.kill()
    other.wait()
    assert len(list_reports(store.root)) == 2


def test_forget_is_refused_where_needs_are_unknown_or_a_ledger_names_the_run(store: Store) -> None:
    first, other = list_reports(store.root)
    entry = SeedEntry(
        seed=3, status="failed", run_id="other", run_name="smoke-other", created_at="", code_sha256=""
    )
    ledger = Ledger(name="demo", configuration="c" * 64, first_seed=0, max_seeds=5, entries=(entry,))
    with open_locked(store.root, ledger):
        write_ledger(store.root, ledger)
    with pytest.raises(SpecError, match="the ledger demo-cccccccc names it as seed 3"):
        forget(store, [other])
    path = store.root / "runs" / "other" / "report.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StageError, match=r"report\.json: damaged .*nothing is removed"):
        forget(store, [first])


def test_the_table_of_runs_loads_in_pandas_with_its_types(store: Store, tmp_path: Path) -> None:
    run, other = list_reports(store.root)
    add_tags(store, other, ["a", "b"])
    files = ("--csv", tmp_path / "runs.csv", "--parquet", tmp_path / "runs.parquet")
    result = fairway("runs", "--sort", "audit.gap_tokens", *files, "--store", store.root)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-2:] == [f"written: {files[1]}", f"written: {files[3]}"]
    table = pd.read_csv(tmp_path / "runs.csv", parse_dates=["started"])
    assert list(table["run_id"]) == ["other", run.run_id]
    kinds = {"started": "M", "seed": "i", "val_bpb": "f", "pinned": "b", "audit.gap_tokens": "i"}
    assert {name: table[name].dtype.kind for name in kinds} == kinds
    assert list(table["audit.gap_tokens"]) == [0, run.spec.audit.gap_tokens]
    assert [name for name in table.columns if "." in name] == ["audit.gap_tokens"]
    assert (table["val_bpb"] == run.val_bpb_quantized_sliding).all()
    assert table["tags"][0] == "a,b"
    typed = pq.read_table(tmp_path / "runs.parquet").to_pandas()
    assert list(typed["val_bpb"]) == list(table["val_bpb"])


def test_curves_are_steps_that_trackio_takes(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    asked = ("runs", "other", "--curves", "--csv", path, "--store", store.root)
    assert fairway(*asked).exit_code == 0
    table, run = pd.read_csv(path), list_reports(store.root)[-1]
    assert list(table["step"]) == list(range(1, run.trained.steps + 1))
    # Trackio takes each column that pandas.to_numeric does, and leaves the others out.
    assert {"loss", "lr_scale", "grad_norm"} <= set(table.select_dtypes("number").columns)
    assert set(table["run"]) == {"smoke-other"}


def test_runs_are_chosen_by_tag_and_wrong_names_are_refused(store: Store) -> None:
    add_tags(store, list_reports(store.root)[-1], ["a"])
    place = ("--store", store.root)
    [entry] = json.loads(fairway("runs", "--tag", "a", *place, "--json").stdout)
    assert (entry["run_id"], entry["tags"]) == ("other", ["a"])
    for wrong, named in (
        (("--tag", "aa"), "--tag = aa: no run has this tag. Tags: a"),
        (("--sort", "val_bbp"), "--sort = val_bbp: no such column. Did you mean val_bpb"),
        (("--curves",), "--curves: names no file"),
        (("nothing",), "RUN = nothing"),
    ):
        result = fairway("runs", *wrong, *place)
        assert (result.exit_code, named in result.stderr) == (2, True), result.stderr


def test_tags_reach_the_flow_run_on_the_server(smoke_run: Any) -> None:
    run_id = smoke_run.report.run_id

    def shown() -> list[str]:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(run_id)).tags

    change_tags(run_id, ["baseline", "pinned"])
    assert set(shown()) >= {"baseline", "pinned"}
    change_tags(run_id, ["baseline", "pinned"], remove=True)
    assert not set(shown()) & {"baseline", "pinned"}
    change_tags(str(UUID(int=1)), ["baseline"])  # a run of another server


def test_a_stage_again_leaves_all_others_cached(
    smoke_run: Any, smoke_store: Path, run_pipeline: Callable[..., Any]
) -> None:
    before = run_pipeline(smoke_store).report  # another test may have made a stage of the shared store anew
    report = pipeline("smoke", again=("quantize",), options=RunOptions(store=str(smoke_store)))
    assert [stage.stage for stage in report.stages if not stage.cached] == ["quantize"]
    assert [stage.key for stage in report.stages] == [stage.key for stage in before.stages]
    assert report.packed == smoke_run.report.packed
    assert len(report.stages) == len(STAGES)
    refused = fairway("run", "--again", "quantise", "--store", smoke_store)
    assert (refused.exit_code, "Did you mean quantize?" in refused.stderr) == (2, True)


def test_notes_are_those_of_one_run_only(store: Store) -> None:
    run, other = list_reports(store.root)
    add_note(store, other, "text")
    assert load_notes(store.root, run.run_id).notes == ()
