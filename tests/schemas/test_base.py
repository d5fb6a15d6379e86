import importlib
import json
import math
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, get_origin

import numpy as np
import pytest
from pydantic import ValidationError

import schemas
from presets import PRESETS
from schemas.audit import Finding
from schemas.base import Schema, Volatile, fingerprint, invalid_field
from schemas.compute_settings import ComputeSettings
from schemas.evaluate import EvaluateSpec, Score
from schemas.files import FileRef, SourceFile
from schemas.introspect import Child, children, list_item, variants
from schemas.merge import MergeSpec
from schemas.model_settings import ModelSettings
from schemas.pipeline import PipelineSpec
from schemas.quantizer_settings import QUANTIZER_OF_METHOD, GptqLite, QuantizerSettings
from schemas.recipe import Recipe
from schemas.settings_base import Settings, from_dict
from schemas.tensor_formats import FormatRule, format_for
from schemas.train_settings import OptimizerSettings, ScheduleSettings, TrainSettings

HASH = "a" * 64


class Sample(Schema):
    a: int = 1
    tags: frozenset[str] = frozenset()
    seconds: Volatile[float] = 0.0
    file: FileRef | None = None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_never_gets_into_a_record_and_is_named(number: float) -> None:
    score = {
        "bpb": 1.0,
        "loss": 1.0,
        "nll_nats_sum": 1.0,
        "num_targets": 1,
        "num_bytes": 1,
        "num_bos_targets": 0,
        "bos_nats_sum": 0.0,
    }
    with pytest.raises(ValidationError) as caught:
        Score(**score | {"seconds": 0.0, "loss": number})
    assert invalid_field(caught.value) == f"Score.loss = {number}: must be a finite number"
    with pytest.raises(ValidationError) as caught:
        Finding(key="c", title="", verdict="holds", evidence="", figures={"a_bpb": number})
    assert invalid_field(caught.value).startswith(f"Finding.figures.a_bpb = {number}: ")


def test_no_schema_lets_numbers_in_that_are_not_finite() -> None:
    for module in pkgutil.iter_modules(schemas.__path__):
        importlib.import_module(f"schemas.{module.name}")
    kinds = [Schema]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert len(kinds) > 30
    assert [kind.__name__ for kind in kinds if kind.model_config.get("allow_inf_nan") is not False] == []


def test_fingerprints_ignore_order_paths_and_volatile_fields_only() -> None:
    base = Sample(a=1, tags=frozenset({"x", "y", "z"}), file=FileRef(path="p", num_bytes=1, sha256=HASH))
    assert fingerprint(base) == fingerprint(
        base.derive(seconds=5.0, file=FileRef(path="q", num_bytes=1, sha256=HASH))
    )
    assert fingerprint(base) != fingerprint(base.derive(a=2))
    assert fingerprint(base) != fingerprint(base.derive(file=FileRef(path="p", num_bytes=1, sha256="b" * 64)))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_fingerprints_are_the_same_in_another_process() -> None:
    code = (
        "from presets import PRESETS; from schemas.base import fingerprint; print([fingerprint(make()) for "
        "make in PRESETS.values()])"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {str([fingerprint(make()) for make in PRESETS.values()]) + "\n"}


def test_what_has_no_stable_identity_is_refused() -> None:
    with pytest.raises(TypeError, match="no stable identity"):
        fingerprint({"f": object()})


def test_derive_validates_again() -> None:
    with pytest.raises(ValidationError):
        Sample().derive(a="many")
    with pytest.raises(ValidationError):
        Sample().derive(b=1)


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", "a/../../b", "a\\b", "", "a\x00b"])
def test_a_file_reference_cannot_leave_the_store(path: str) -> None:
    with pytest.raises(ValidationError, match="relative path inside the store"):
        FileRef(path=path, num_bytes=1, sha256=HASH)
    assert SourceFile(path=path or "x", num_bytes=1, sha256=HASH)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_survives_json_and_its_settings_survive_plain_dicts(preset: str) -> None:
    spec = PRESETS[preset]()
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec
    assert from_dict(TrainSettings, json.loads(spec.model_dump_json())["train"]) == spec.train


@pytest.mark.parametrize("kind", QUANTIZER_OF_METHOD.values())
def test_a_recipe_finds_its_quantizer_again_by_the_method(kind: type[QuantizerSettings]) -> None:
    recipe = Recipe(quantizer=kind(zstd_level=3))
    assert from_dict(Recipe, json.loads(json.dumps(asdict(recipe)))) == recipe
    with pytest.raises(ValueError, match="are settings of none of RoundToNearest, GptqLite"):
        from_dict(Recipe, {"quantizer": {"zstd_level": 3}})


def test_a_recipe_takes_the_settings_of_a_quantizer_and_no_others() -> None:
    wanted = "quantizer = .*: must be of type RoundToNearest or GptqLite .*, not ModelSettings"
    with pytest.raises(ValueError, match=wanted):
        Recipe(quantizer=ModelSettings())  # type: ignore[arg-type]


def test_schemas_import_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, schemas.pipeline, presets; assert not {'torch', 'numpy', 'prefect', "
        "'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 7}, "model_dim = 512: must be a multiple of num_heads = 7"),
        ({"num_kv_heads": 3}, "num_kv_heads = 3: must divide"),
        ({"rope_dims": 15}, "rope_dims = 15: must be even"),
        ({"xsa_layers": 12}, "xsa_layers = 12: must be at most num_layers = 11"),
        ({"value_embedding_layers": (11,)}, "layers count from 0 to 10"),
        ({"value_embedding_layers": ()}, "turn it off with value_embedding_dim=0"),
        ({"vocab_size": 70_000}, "vocab_size = 70000: must be at most 65536"),
        ({"logit_softcap": float("nan")}, "must be a finite number"),
    ],
)
def test_settings_refuse_what_cannot_be_and_say_what_can(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ModelSettings(), **change)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ScheduleSettings(max_seconds=600), ScheduleSettings(max_seconds=600.0)),
        (ScheduleSettings(max_steps=40.0), ScheduleSettings(max_steps=40)),
        (GptqLite(clip_candidates=[1, 0.9]), GptqLite(clip_candidates=(1.0, 0.9))),
        (ModelSettings(q_gain_init=np.float64(1.5)), ModelSettings(q_gain_init=1.5)),
        (ModelSettings(num_layers=np.int64(11)), ModelSettings(num_layers=11)),
    ],
)
def test_equal_settings_are_one_key_however_their_numbers_are_written(one: Settings, other: Settings) -> None:
    assert one == other
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ComputeSettings(device="gpu"), r"device = 'gpu': must be 'cpu' or 'cuda'"),
        (lambda: FormatRule("*", "int9"), r"format = 'int9': must be 'int2' or .* or 'fp32'"),
        (lambda: ScheduleSettings(max_steps=1.5), r"max_steps = 1.5: must be of type int, not float"),
        (lambda: ScheduleSettings(max_seconds=True), r"max_seconds = True: must be of type float, not bool"),
        (lambda: ScheduleSettings(max_seconds="600"), r"max_seconds = '600': must be of type float, not str"),
        (lambda: ComputeSettings(compile=1), r"compile = 1: must be of type bool, not int"),
        (
            lambda: ModelSettings(value_embedding_layers=9),
            r"value_embedding_layers = 9: must be of type list",
        ),
        (lambda: TrainSettings(compute={}), r"compute = {}: must be of type ComputeSettings, not dict"),
        (lambda: OptimizerSettings(frozen=(1,)), r"frozen = 1: must be of type str, not int"),
    ],
)
def test_settings_made_in_python_are_checked_by_type_and_choice(
    make: Callable[[], Settings], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"precision": "float32"}])
def test_fused_kernels_are_refused_where_they_cannot_run(change: dict) -> None:
    on_gpu = ComputeSettings(device="cuda", fused_kernels=True)
    with pytest.raises(
        ValueError, match="fused_kernels = true: they are for device = 'cuda' and precision = 'bfloat16'"
    ):
        replace(on_gpu, **change)


def test_the_first_matching_rule_decides_a_format() -> None:
    rules = PRESETS["reference"]().quantize.rules
    assert format_for("tok_emb.weight", rules) == "fp16"
    assert (
        format_for("blocks.0.attn.q.weight", rules) == format_for("blocks.10.mlp.up.weight", rules) == "int8"
    )
    assert format_for("blocks.1.attn.q.weight", rules) == "int6"
    assert format_for("blocks.10.attn.q_gain", rules) == "fp32"


# The last word of a name that counts or measures something, and how its unit begins.
UNITS = {
    "seconds": "seconds",
    "bytes": "bytes",
    "nats": "nats",
    "tokens": "tokens",
    "documents": "documents",
    "sequences": "sequences",
    "length": "tokens",
    "dim": "dims",
    "dims": "dims",
    "fraction": ("fraction", "share"),
}


def _declared(hint: Any, name: str) -> Iterator[tuple[str, Child]]:
    """Every setting below `hint`, of each variant of a union and of an item of a list, by its dotted name."""
    hint = list_item(hint).hint if get_origin(hint) is tuple else hint
    for kind in variants(hint).values() or (hint,):
        for field, child in children(kind, None).items():
            if field == "kind":  # says which variant it is, and is explained where the union stands
                continue
            yield f"{name}.{field}", child
            yield from _declared(child.hint, f"{name}.{field}")


def test_every_setting_has_help_and_what_counts_something_its_unit() -> None:
    settings = dict(_declared(PipelineSpec, "spec"))
    for known in ("train.optimizer.muon_lr", "quantize.rules.format", "tokenize.corpus.paths"):
        assert f"spec.{known}" in settings
    assert [name for name, setting in settings.items() if not setting.help.strip()] == []
    words = {name: re.split(r"[._]", name)[-1] for name in settings}
    without = [
        name for name, word in words.items() if not settings[name].unit.startswith(UNITS.get(word, ""))
    ]
    assert without == []


@pytest.mark.parametrize("spec", [EvaluateSpec, MergeSpec])
@pytest.mark.parametrize("name", ["compile", "fused_kernels"])
def test_what_only_training_does_is_refused_where_nothing_trains(spec: type, name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} = true: only training does that"):
        spec(compute=ComputeSettings(device="cuda", **{name: True}))
