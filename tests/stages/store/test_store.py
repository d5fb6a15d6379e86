"""The store serves only what is whole, and says why it makes something again.

Uses a real, cheap stage: check_size.
"""

import logging
import math
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from schemas.check_size import CheckSizeSpec
from schemas.errors import SpecError, StageError
from schemas.files import FileRef
from schemas.package import PackageSpec
from schemas.quantize import PackedModel
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from stages.execution.runner import StageOutcome, run_stage
from stages.store.keys import stage_key
from stages.store.store import Store, awaits_store, is_store, open_existing_store, open_store_at
from stages.store.workspace import DamagedFileError, Workspace

PACKAGE = STAGES["package"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "ein Lager für 模型")


@pytest.fixture
def packed(store: Store) -> PackedModel:
    blob = store.root / "stages" / "model.fwz"
    blob.write_bytes(b"not looked into by packaging" * 10)
    ref = FileRef(path="stages/model.fwz", num_bytes=blob.stat().st_size, sha256=store.hashes.sha256(blob))
    return PackedModel(
        blob=ref,
        method="gptq_lite",
        num_parameters=1,
        stored_bytes=1,
        header_bytes=1,
        blob_bytes=ref.num_bytes,
        blob_bytes_round_to_nearest=1,
        tensors=(),
    )


def package(store: Store, packed: PackedModel) -> StageOutcome:
    return run_stage(store, "package", PackageSpec(), {"packed": packed}, RunOptions(store=str(store.root)))


def test_a_second_run_is_served_from_the_store(store: Store, packed: PackedModel) -> None:
    first, second = package(store, packed), package(store, packed)
    assert (first.cached, second.cached) == (False, True)
    assert first.record == second.record
    assert not any((store.root / "work" / "package").iterdir())


def test_a_result_that_is_not_finite_is_named_and_not_stored(
    store: Store, packed: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_finite(spec: PackageSpec, packed: PackedModel, work: Workspace) -> PackedModel:
        return packed.derive(divergence_nats=math.nan)

    monkeypatch.setattr("stages.package.package", not_finite)
    with pytest.raises(
        StageError,
        match=r"package: what came out cannot be recorded: PackedModel\.divergence_nats = nan: .*finite",
    ):
        package(store, packed)
    assert not (store.root / "stages" / "package").exists()


def test_a_moved_store_still_serves(store: Store, packed: PackedModel, tmp_path: Path) -> None:
    package(store, packed)
    moved = tmp_path / "elsewhere"
    shutil.move(store.root, moved)
    assert package(Store(moved), packed).cached


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, empty, Path.unlink])
@pytest.mark.parametrize("file", ["record.json", "package/train_gpt.py", "package/model.fwz"])
def test_damage_is_named_and_the_stage_runs_again(
    store: Store, packed: PackedModel, damage, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = package(store, packed)
    folder = store.folder(PACKAGE, first.record.provenance.key)
    damage(folder / file)
    with caplog.at_level(logging.WARNING):
        again = package(store, packed)
    assert not again.cached
    assert again.record.result == first.record.result
    assert any(
        "package" in message and Path(file).name in message and "runs again" in message
        for message in caplog.messages
    )
    assert package(store, packed).cached


def test_the_record_of_another_result_is_not_served(store: Store, packed: PackedModel) -> None:
    mine = package(store, packed)
    other = package(
        store, packed.derive(blob=packed.blob.derive(sha256=packed.blob.sha256), num_parameters=2)
    )
    folders = [store.folder(PACKAGE, outcome.record.provenance.key) for outcome in (mine, other)]
    assert folders[0] != folders[1]
    shutil.copyfile(folders[1] / "record.json", folders[0] / "record.json")
    assert not package(store, packed).cached


def test_a_missing_input_is_named_and_nothing_is_published(store: Store, packed: PackedModel) -> None:
    (store.root / packed.blob.path).unlink()
    with pytest.raises(DamagedFileError, match=r"model\.fwz is missing"):
        package(store, packed)
    assert not (store.root / "stages" / "package").exists()


def test_the_key_follows_spec_code_and_content_but_not_where_files_lie(
    packed: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = stage_key(PACKAGE, PackageSpec(), {"packed": packed})
    moved = packed.derive(blob=packed.blob.derive(path="stages/elsewhere.fwz"))
    assert stage_key(PACKAGE, PackageSpec(), {"packed": moved}) == key
    changed = packed.derive(blob=packed.blob.derive(sha256="0" * 64))
    assert stage_key(PACKAGE, PackageSpec(), {"packed": changed}) != key
    assert stage_key(PACKAGE, PackageSpec(keep_comments=False), {"packed": packed}) != key
    monkeypatch.setattr("stages.store.keys.code_digest", lambda *roots: "another version of the code")
    assert stage_key(PACKAGE, PackageSpec(), {"packed": packed}) != key


def test_wrong_inputs_are_refused_by_name(store: Store) -> None:
    with pytest.raises(SpecError, match="check_size takes package, packed"):
        run_stage(store, "check_size", CheckSizeSpec(), {}, RunOptions())
    with pytest.raises(SpecError, match="packed must be a PackedModel, not CheckSizeSpec"):
        run_stage(store, "package", PackageSpec(), {"packed": CheckSizeSpec()}, RunOptions())


def test_a_store_that_cannot_be_one_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SpecError, match="FAIRWAY_STORE"):
        Store(file)


def test_a_folder_of_other_files_is_neither_read_as_a_store_nor_made_one(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("text")
    (tmp_path / "stages").mkdir()  # a name alone makes no store
    with pytest.raises(SpecError, match=r"^--store .*there is no store in this folder.*FAIRWAY_STORE"):
        open_existing_store(tmp_path, None)
    for remote in (None, (tmp_path / "far").as_uri()):
        with pytest.raises(SpecError, match=r"^--store .*holds other files \(book\.txt\)"):
            open_store_at(tmp_path, remote)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["book.txt", "stages"]


def test_a_missing_folder_is_made_a_store_by_a_run_alone(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no store and no such folder"):
        open_existing_store(tmp_path / "new", None)
    assert not (tmp_path / "new").exists()
    open_store_at(tmp_path / "new", None).close()
    open_existing_store(tmp_path / "new", None).close()


@pytest.mark.parametrize("name", ["run.log", "lost+found", "logs", "prefect", ".hidden"])
def test_logs_and_prefects_files_may_lie_where_a_store_is_made(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    open_store_at(tmp_path, None).close()


@pytest.mark.parametrize("sign", ["stages/package/0123/record.json", "runs/0123/report.json"])
def test_a_store_of_an_earlier_version_opens_by_what_it_holds(sign: str, tmp_path: Path) -> None:
    (tmp_path / sign).parent.mkdir(parents=True)
    (tmp_path / sign).touch()
    (tmp_path / "of-the-user.txt").touch()
    open_existing_store(tmp_path, None).close()
    open_store_at(tmp_path, None).close()


def test_the_cache_of_a_remote_store_may_be_new(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    open_existing_store(tmp_path / "cache", (tmp_path / "far").as_uri()).close()
    assert is_store(tmp_path / "cache")


def test_the_default_store_may_not_be_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert awaits_store(".fairway", None)
    with pytest.raises(SpecError, match=r"holds no finished run\. `fairway run` makes one"):
        open_existing_store(".fairway", None)
    assert list(tmp_path.iterdir()) == []


def hold_lock(root: Path, ready) -> None:
    store = Store(root)
    with store.lock(PACKAGE, "k" * 64):
        ready.set()
        time.sleep(60)


def test_a_lock_whose_holder_was_killed_is_free_again(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold_lock, args=(store.root, ready))
    holder.start()
    assert ready.wait(30)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with store.lock(PACKAGE, "k" * 64):
        pass


def package_in_process(root: Path, packed_json: str, start, answers) -> None:
    start.wait(30)
    outcome = package(Store(root), PackedModel.model_validate_json(packed_json))
    answers.put(outcome.cached)


def test_two_processes_that_want_the_same_make_it_once(store: Store, packed: PackedModel) -> None:
    context = multiprocessing.get_context("spawn")
    start, answers = context.Event(), context.Queue()
    both = [
        context.Process(
            target=package_in_process, args=(store.root, packed.model_dump_json(), start, answers)
        )
        for _ in range(2)
    ]
    for process in both:
        process.start()
    start.set()
    assert sorted(answers.get(timeout=60) for _ in both) == [False, True]
    for process in both:
        process.join()
