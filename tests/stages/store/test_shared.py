"""Two machines with one remote store have the same results, runs and ledgers; damage is replaced.

A machine is a store of its own. Uses a real, cheap stage: package.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import SpecError, StageError
from schemas.files import FileRef, SourceFile, StageRecord
from schemas.package import PackageSpec
from schemas.quantize import PackedModel
from schemas.runtime import RunOptions
from schemas.seeds import Ledger, SeedEntry
from schemas.stages import STAGES, Stage
from schemas.tokenize_corpus import SplitCounts, TokenizedCorpus, TokenizeSpec
from stages.execution.runner import StageOutcome, run_stage
from stages.seeds.ledger import find_ledger, ledger_path, write_ledger
from stages.store.housekeeping import find_damage
from stages.store.remote import blob_name, open_remote
from stages.store.remote_housekeeping import find_unneeded_objects
from stages.store.shared import SharedStore
from stages.store.store import Store
from stages.store.workspace import DamagedFileError

PACKAGE = STAGES["package"]
BLOB = b"not looked into by packaging" * 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def machine(tmp_path: Path, folder: Path) -> Callable[[str], SharedStore]:
    """A store by its name, with the quantized model that packaging takes."""

    def make(name: str) -> SharedStore:
        return SharedStore(tmp_path / name, open_remote(folder.as_uri()))

    return make


def packed(store: Store) -> PackedModel:
    blob = store.root / "stages" / "model.fwz"
    blob.write_bytes(BLOB)
    ref = FileRef(path="stages/model.fwz", num_bytes=len(BLOB), sha256=store.hashes.sha256(blob))
    return PackedModel(
        blob=ref,
        method="gptq_lite",
        num_parameters=1,
        stored_bytes=1,
        header_bytes=1,
        blob_bytes=len(BLOB),
        blob_bytes_round_to_nearest=1,
        tensors=(),
    )


def package(store: Store) -> StageOutcome:
    options = RunOptions(store=str(store.root))
    return run_stage(store, "package", PackageSpec(), {"packed": packed(store)}, options)


def name_of(outcome: StageOutcome) -> str:
    return f"stages/package/{outcome.record.provenance.key[:32]}"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_another_machine_is_served_and_fetches_a_file_when_it_is_read(
    machine: Callable[[str], SharedStore],
) -> None:
    first = package(machine("a"))
    other = machine("b")
    served = package(other)
    assert served.cached
    assert served.record == first.record
    script = served.record.result.script
    assert not (other.root / script.path).exists()
    assert other.fetch(script).read_bytes() == (machine("a").root / script.path).read_bytes()
    assert not any((other.root / "work").rglob("*.*"))


def test_a_result_from_before_the_remote_is_uploaded_when_it_is_used(
    machine: Callable[[str], SharedStore], tmp_path: Path
) -> None:
    before = package(Store(tmp_path / "a"))
    assert not before.cached
    assert package(machine("a")).cached
    assert package(machine("b")).record == before.record


def test_of_two_results_for_one_key_the_first_counts_everywhere(
    machine: Callable[[str], SharedStore], tmp_path: Path
) -> None:
    alone = package(Store(tmp_path / "b"))
    first = package(machine("a"))
    late = machine("b")
    assert alone.record.provenance != first.record.provenance
    assert late.publish(PACKAGE, first.record.provenance.key, moved_to_work(late, alone)) == first.record
    assert late.find(PACKAGE, first.record.provenance.key) == first.record
    assert Store.record(late, PACKAGE, first.record.provenance.key) == first.record


def moved_to_work(store: Store, outcome: StageOutcome) -> Any:
    """The result as it lay before it was published."""
    key = outcome.record.provenance.key
    work = store.work_folder(PACKAGE, key)
    work.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(store.folder(PACKAGE, key), work)
    return outcome.record


def test_a_damaged_file_here_is_replaced_from_the_remote(
    machine: Callable[[str], SharedStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = machine("a")
    made = package(store)
    script = store.root / made.record.result.script.path
    sound = script.read_bytes()
    flip_a_byte(script)
    assert list(find_damage(store)) == [
        f"{script} is damaged: its sha256 is not the recorded {made.record.result.script.sha256[:12]}…"
    ]
    assert package(store).cached
    with caplog.at_level(logging.WARNING):
        assert store.fetch(made.record.result.script).read_bytes() == sound
    assert f"{script} is damaged" in caplog.text
    assert list(find_damage(store)) == []


def test_a_damaged_file_in_the_remote_is_named_and_made_again(
    machine: Callable[[str], SharedStore], folder: Path
) -> None:
    script = package(machine("a")).record.result.script
    flip_a_byte(folder / blob_name(script.sha256))
    other = machine("b")
    assert package(other).cached
    with pytest.raises(DamagedFileError, match=rf"{blob_name(script.sha256)} is damaged .* was taken away"):
        other.fetch(script)
    shutil.rmtree(machine("a").root)
    again = package(other)
    assert not again.cached
    assert again.record.result.script == script
    assert package(machine("c")).cached
    assert machine("c").fetch(script).exists()


def test_a_missing_file_in_the_remote_is_uploaded_by_a_machine_that_has_it(
    machine: Callable[[str], SharedStore], folder: Path
) -> None:
    script = package(machine("a")).record.result.script
    (folder / blob_name(script.sha256)).unlink()
    open_remote.cache_clear()  # a new process
    assert package(machine("a")).cached
    assert machine("b").remote.has_blob(script)


@pytest.mark.parametrize("damage", [flip_a_byte, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_record_in_the_remote_is_replaced(
    machine: Callable[[str], SharedStore], folder: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = package(machine("a"))
    damage(folder / name_of(first))
    with caplog.at_level(logging.WARNING):
        assert not package(machine("b")).cached
    if damage is not Path.unlink:
        assert f"{name_of(first)} is damaged" in caplog.text
        assert f"{name_of(first)}: replaced by a sound result" in caplog.text
    served = package(machine("c"))
    assert served.cached
    assert package(machine("a")).record == served.record


def test_a_record_that_names_a_missing_file_is_replaced(
    machine: Callable[[str], SharedStore], folder: Path
) -> None:
    """As where another GPU gave other bytes: the file that is named cannot be made again."""
    first = package(machine("a"))
    content = json.loads((folder / name_of(first)).read_bytes().partition(b"\n")[2])
    content["result"]["script"]["sha256"] = "0" * 64
    open_remote(folder.as_uri()).replace(name_of(first), json.dumps(content).encode())
    again = package(machine("b"))
    assert not again.cached
    assert package(machine("c")).record == again.record


def test_a_result_that_needs_files_outside_the_store_is_each_machines_own(
    machine: Callable[[str], SharedStore], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokenized shards of the user's lie at another path on each machine."""
    stage, key = STAGES["tokenize_corpus"], "5" * 64
    made = {}
    for name in ("a", "b"):
        shard = tmp_path / f"shard of {name}"
        shard.write_bytes(b"the same tokens")
        own = tokenized(machine(name), shard, stage, key)
        machine(name).work_folder(stage, key).mkdir(parents=True)
        made[name] = machine(name).publish(stage, key, own)
        assert made[name] == own == machine(name).find(stage, key)
        shard.rename(tmp_path / "on another disk")
    (tmp_path / "on another disk").rename(tmp_path / "shard of b")
    assert machine("b").find(stage, key) == made["b"]
    assert machine("a").find(stage, key) is None
    assert "replaced" not in caplog.text
    (folder / f"stages/tokenize_corpus/{key[:32]}").unlink()
    assert machine("b").find(stage, key) == made["b"]


def tokenized(store: Store, shard: Path, stage: Stage, key: str) -> StageRecord:
    """A record of tokenization whose only file lies outside the store."""
    file = SourceFile(path=str(shard), num_bytes=15, sha256=store.hashes.sha256(shard))
    counts = SplitCounts(
        num_documents=1, num_tokens=7, num_bos=1, utf8_bytes=None, normalized_utf8_bytes=None
    )
    result = TokenizedCorpus(
        tokenizer=file,
        tokenizer_sha256=file.sha256,
        vocab_size=300,
        bos_id=1,
        train_shards=(file,),
        val_shards=(file,),
        train=counts,
        val=counts,
    )
    provenance = package(Store(store.root)).record.provenance.derive(stage=stage.name, key=key)
    return stage.record_type()(provenance=provenance, spec=TokenizeSpec(), result=result)


def test_a_file_that_is_not_here_yet_is_no_damage(
    machine: Callable[[str], SharedStore], folder: Path
) -> None:
    made = package(machine("a"))
    other = machine("b")
    package(other)
    assert list(find_damage(other)) == []
    (folder / blob_name(made.record.result.script.sha256)).unlink()
    [problem] = find_damage(other)
    assert problem == f"{other.root / made.record.result.script.path} is missing"


def test_a_record_may_only_name_results(machine: Callable[[str], SharedStore]) -> None:
    store = machine("a")
    outside = packed(store).blob.derive(path="runs/x/report.json")
    store.remote.upload_blob(store.root / "stages" / "model.fwz", outside)
    with pytest.raises(DamagedFileError, match="only files below stages/ are fetched"):
        store.fetch(outside)


def test_every_file_of_a_value_is_brought(machine: Callable[[str], SharedStore]) -> None:
    made = package(machine("a"))
    other = machine("b")
    other.bring((made.record.result, None))
    assert (other.root / made.record.result.script.path).exists()
    assert list(find_damage(other)) == []  # no file is there without its record


def ledger(*entries: tuple[int, str], max_seeds: int = 5) -> Ledger:
    made = Ledger(name="demo", configuration="0123456789abcdef", first_seed=1, max_seeds=max_seeds)
    for seed, status in entries:
        entry = SeedEntry(
            seed=seed, status=status, run_id=f"run-{seed}", run_name="", created_at="", code_sha256=""
        )
        made = made.with_entry(entry)
    return made


def test_a_ledger_has_the_seeds_of_all_machines(machine: Callable[[str], SharedStore]) -> None:
    here, there = machine("a"), machine("b")
    assert here.share_ledger(ledger()).entries == ()
    assert not here.remote.objects("ledgers/")
    here.share_ledger(ledger((1, "completed")))
    both = there.share_ledger(ledger((2, "failed")))
    assert [entry.seed for entry in both.entries] == [1, 2]
    assert here.share_ledger(ledger((1, "failed"), (2, "completed"))).completed() == list(
        here.share_ledger(both).entries
    )
    assert find_ledger(there.runs_root(), "demo") == here.share_ledger(ledger())


def test_a_ledger_with_another_plan_is_refused(machine: Callable[[str], SharedStore]) -> None:
    machine("a").share_ledger(ledger((1, "completed")))
    with pytest.raises(SpecError, match="max_seeds = 9: ledger demo-01234567 was declared with 5"):
        machine("b").share_ledger(ledger(max_seeds=9))


def test_of_two_writers_at_once_none_loses_a_seed(
    machine: Callable[[str], SharedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machine("a"), machine("b")
    create = here.remote.create

    def slower(name: str, content: bytes) -> bool:
        monkeypatch.undo()
        there.share_ledger(ledger((2, "completed")))
        return create(name, content)

    monkeypatch.setattr(here.remote, "create", slower)
    assert [entry.seed for entry in here.share_ledger(ledger((1, "completed"))).entries] == [1, 2]
    assert [entry.seed for entry in there.share_ledger(ledger()).entries] == [1, 2]


def test_a_damaged_ledger_is_named_and_never_begun_anew(
    machine: Callable[[str], SharedStore], folder: Path
) -> None:
    store = machine("a")
    store.share_ledger(ledger((1, "completed")))
    [version] = store.remote.objects("ledgers/")
    flip_a_byte(folder / version.name)
    with pytest.raises(SpecError, match=rf"{version.name}: damaged .* Remove this object"):
        store.share_ledger(ledger((2, "completed")))


def test_the_remote_has_the_same_record_of_a_ledger_as_a_store(
    machine: Callable[[str], SharedStore], tmp_path: Path
) -> None:
    store, made = machine("a"), ledger((1, "completed"))
    ledger_path(tmp_path, made).parent.mkdir(parents=True)
    write_ledger(tmp_path, made)
    store.share_ledger(made)
    [version] = store.remote.objects("ledgers/")
    assert store.remote.read(version.name) == ledger_path(tmp_path, made).read_bytes()


def test_a_ledger_of_a_later_version_is_refused_and_keeps_its_runs(
    machine: Callable[[str], SharedStore],
) -> None:
    store = machine("a")
    store.remote.create("ledgers/demo-01234567/00000001", b'{"schema_version": 3, "seeds": []}')
    with pytest.raises(SpecError, match="00000001: a ledger of version 3, this Fairway reads 2"):
        store.share_ledger(ledger((2, "completed")))
    with pytest.raises(StageError, match="00000001 is damaged or of another version"):
        find_unneeded_objects(store.remote, keep_runs=0, older_than_hours=0)
    assert len(store.remote.objects("ledgers/")) == 1
