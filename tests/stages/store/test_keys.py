"""Which stages run again after a change: those whose result it may change, and no others."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from presets import load_preset
from schemas.base import Schema, Volatile
from schemas.pipeline import PipelineSpec
from schemas.publish import PublishSpec
from schemas.stages import STAGES
from schemas.train_settings import TrainSettings
from stages.store import keys, source
from stages.store.keys import stage_key
from stages.store.machine import resolve_precision

ROOT = Path(__file__).parents[3]
ALL = set(STAGES)
COMPUTING = {"train", "merge", "quantize", "package", "evaluate", "audit"}


class Given(Schema):
    """Stands for any input. A key takes its content, and the figures that audit and report tell."""

    content: str = "as it was"
    seconds: Volatile[float] = 1.0
    metrics: Volatile[str] = ""
    timings: Volatile[str] = ""
    last: Volatile[str] = ""
    score: Volatile[str] = ""
    test_time_training: Volatile[str] = ""
    test_time_training_seconds: Volatile[str] = ""


def specs() -> dict[str, Any]:
    spec: PipelineSpec = resolve_precision(load_preset("smoke"))
    return {
        "tokenize_corpus": spec.tokenize,
        "train": spec.train,
        "merge": spec.merge,
        "quantize": spec.quantize,
        "package": spec.package_spec(),
        "check_size": spec.check_size,
        "evaluate": spec.evaluate,
        "audit": spec,
        "publish": PublishSpec(),
    }


def keys_of(given: Given, specs: dict[str, Any]) -> dict[str, str]:
    return {
        name: stage_key(stage, specs[name], dict.fromkeys(stage.inputs, given))
        for name, stage in STAGES.items()
    }


Rerun = Callable[..., set[str]]
Edit = Callable[[str, str, str], set[str]]


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return keys_of(Given(), specs())


@pytest.fixture
def rerun(before: dict[str, str]) -> Rerun:
    """The stages whose key another spec or other inputs change."""

    def run(given: Given | None = None, **changed: Any) -> set[str]:
        after = keys_of(given or Given(), specs() | changed)
        return {name for name in STAGES if after[name] != before[name]}

    return run


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rerun: Rerun) -> Edit:
    """The stages that run again once `old` is `new` in a file of ours; a copy stands for the changed file."""
    found = source._source_file

    def change(file: str, old: str, new: str) -> set[str]:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert old in text, f"{file} no longer holds {old!r}"
        changed = tmp_path / Path(file).name
        changed.write_text(text.replace(old, new, 1), encoding="utf-8")
        monkeypatch.setattr(
            source, "_source_file", lambda name: changed if (path := found(name)) == ROOT / file else path
        )
        return rerun()

    return change


def test_code_runs_those_stages_again_that_reach_it(edit: Edit) -> None:
    again = edit("stages/core/muon.py", "import torch\n", "import torch\n\n_NEW = 1\n")
    assert again == {"train", "package"}


def test_a_new_setting_of_a_quantizer_trains_and_merges_nothing_again(
    edit: Edit,
) -> None:
    again = edit("schemas/quantizer_settings.py", "\n    def check(", "\n    more: int = 1\n\n    def check(")
    assert "quantize" in again
    assert not again & {"tokenize_corpus", "train", "merge"}


@pytest.mark.parametrize(
    ("file", "old", "new", "again"),
    [
        pytest.param("stages/core/muon.py", '"""', '"""In other words: ', {"package"}, id="docstring"),
        pytest.param(
            "stages/core/muon.py", "import torch\n", "import torch  # so\n", {"package"}, id="comment"
        ),
        pytest.param(
            "schemas/model_settings.py", '"query heads"', '"heads that ask"', {"package"}, id="help"
        ),
        pytest.param("schemas/files.py", 'description="', 'description="So: ', {"package"}, id="description"),
        pytest.param("stages/training/worker.py", '"late QAT is on', '"QAT is on', set(), id="log-text"),
    ],
)
def test_words_run_nothing_again_but_the_packaging_of_the_source_itself(
    edit: Edit, file: str, old: str, new: str, again: set[str]
) -> None:
    assert edit(file, old, new) == again


def test_the_bounds_and_the_default_of_a_setting_count_as_code(
    edit: Edit,
) -> None:
    assert "train" in edit(
        "schemas/model_settings.py", 'setting(8, "query heads"', 'setting(9, "query heads"'
    )


def test_a_help_text_that_is_computed_counts_as_code(edit: Edit) -> None:
    assert "train" in edit("schemas/model_settings.py", '"query heads"', '"query heads".upper()')


def test_a_setting_runs_its_own_stage_again(rerun: Rerun) -> None:
    train: TrainSettings = specs()["train"]
    assert rerun(train=replace(train, seed=train.seed + 1)) == {"train"}
    assert rerun(publish=PublishSpec(title="Another")) == {"publish"}


def test_a_whole_number_and_a_decimal_one_are_one_setting(before: dict[str, str]) -> None:
    train: TrainSettings = specs()["train"]
    changed = [
        replace(train, schedule=replace(train.schedule, max_seconds=seconds)) for seconds in (600, 600.0)
    ]
    one, other = (stage_key(STAGES["train"], spec, {"tokenized": Given()}) for spec in changed)
    assert one == other != before["train"]


def test_the_order_of_keys_in_json_means_nothing(rerun: Rerun) -> None:
    spec: PipelineSpec = specs()["audit"]
    told = json.loads(spec.model_dump_json())
    turned = json.loads(json.dumps(told, sort_keys=True), object_pairs_hook=lambda pairs: dict(pairs[::-1]))
    assert list(turned) != list(told)
    again = PipelineSpec.model_validate(turned)
    assert rerun(train=again.train, merge=again.merge, quantize=again.quantize, audit=again) == set()


def test_a_library_runs_those_stages_again_that_use_it(rerun: Rerun, monkeypatch: pytest.MonkeyPatch) -> None:
    real = source.library_version
    monkeypatch.setattr(source, "library_version", lambda name: "999" if name == "zstandard" else real(name))
    users = {"tokenize_corpus", "quantize", "package", "check_size", "evaluate", "audit"}
    assert rerun() == users


def test_another_kind_of_machine_runs_again_what_computes(
    rerun: Rerun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "machine_kind", lambda compute: "another kind")
    assert rerun() == COMPUTING


def test_the_content_of_an_input_counts_and_the_seconds_that_it_took_do_not(rerun: Rerun) -> None:
    assert rerun(Given(content="another")) == ALL
    assert rerun(Given(seconds=2.0)) == set()
    assert rerun(Given(metrics="others")) == {"audit", "publish"}
