"""A stage computed again: an equal result changes nothing in the store, another one is an error.

Uses a real, cheap stage: package.
"""

import json
from pathlib import Path

import pytest

from schemas.errors import StageError
from schemas.files import FileRef
from schemas.package import PackageSpec
from schemas.quantize import PackedModel
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from stages import package as packaging
from stages.execution.runner import StageOutcome, run_stage
from stages.store.housekeeping import find_unneeded
from stages.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def package(store: Store, again: bool = False) -> StageOutcome:
    blob = store.root / "stages" / "model.fwz"
    blob.write_bytes(b"not looked into by packaging" * 10)
    ref = FileRef(path="stages/model.fwz", num_bytes=blob.stat().st_size, sha256=store.hashes.sha256(blob))
    packed = PackedModel(
        blob=ref,
        method="gptq_lite",
        num_parameters=1,
        stored_bytes=1,
        header_bytes=1,
        blob_bytes=ref.num_bytes,
        blob_bytes_round_to_nearest=1,
        tensors=(),
    )
    options = RunOptions(store=str(store.root))
    return run_stage(store, "package", PackageSpec(), {"packed": packed}, options, again=again)


def test_the_same_result_again_leaves_the_stored_record(store: Store) -> None:
    first = package(store)
    again = package(store, again=True)
    assert (again.cached, again.repeated) == (False, True)
    assert again.record == first.record  # its time of creation, too: later stages keep their keys
    assert not any((store.root / "work" / "package").iterdir())
    served = package(store)
    assert (served.cached, served.repeated) == (True, False)


def test_again_makes_a_missing_result_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made, work = [], packaging.package
    monkeypatch.setattr(packaging, "package", lambda spec, **rest: made.append(1) or work(spec, **rest))
    outcome = package(store, again=True)
    assert (outcome.cached, outcome.repeated, len(made)) == (False, False, 1)


def test_another_result_again_is_an_error_and_lies_apart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, work = package(store), packaging.package

    def other(spec: PackageSpec, **rest: object) -> object:
        made = work(spec, **rest)  # type: ignore[arg-type]
        path = rest["work"].out_dir / "package" / "train_gpt.py"  # type: ignore[attr-defined]
        path.write_bytes(path.read_bytes() + b"# another line\n")
        return made.derive(script=rest["work"].ref(path))  # type: ignore[attr-defined]

    monkeypatch.setattr(packaging, "package", other)
    with pytest.raises(StageError, match=r"package: computed again, .* another result .*\(script\)"):
        package(store, again=True)
    monkeypatch.undo()
    assert package(store).record == first.record
    [record] = store.root.glob("recheck/*/stages/package/*/record.json")
    kept = json.loads(record.read_bytes())["result"]["script"]
    apart = Store(record.parents[3])
    assert apart.problem(FileRef.model_validate(kept)) is None
    assert apart.record(STAGES["package"], first.record.provenance.key) is not None
    assert apart.root in [item.path for item in find_unneeded(store, older_than_hours=0)]
