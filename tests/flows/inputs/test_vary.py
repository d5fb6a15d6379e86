"""What `--vary` takes, and what it refuses before anything starts."""

import pytest

from flows.inputs.vary import assignments, parse_variation, plan_sweep
from presets import load_preset
from schemas.errors import SpecError
from schemas.sweep import Choices, Range

LAYERS = "train.model.num_layers=4,6,8"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.optimizer.muon_lr=0.01:0.05:log", {"low": 0.01, "high": 0.05, "log": True}),
        ("train.optimizer.muon_lr = 1e-3 : 5e-2", {"low": 0.001, "high": 0.05}),
        ("train.model.num_layers=4:8", {"low": 4, "high": 8, "whole": True}),
        ("train.model.num_layers=4:8:2", {"low": 4, "high": 8, "step": 2, "whole": True}),
        ("train.schedule.max_seconds=10:60", {"low": 10, "high": 60}),
    ],
)
def test_a_range_has_two_ends_and_a_scale(text: str, expected: dict) -> None:
    found = parse_variation(load_preset("demo"), text)
    assert found == Range(settings=(text.partition("=")[0].strip(),), **expected)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (LAYERS, ("4", "6", "8")),
        ("quantize.method=gptq_lite,ecsq", ("gptq_lite", "ecsq")),
        ("train.model.smear_gate=true,false", ("true", "false")),
        ("train.model.value_embedding_layers=[1],[1, 2]", ("[1]", "[1, 2]")),
        ("quantize.rules.1.format=int6, int5,int6", ("int6", "int5")),
    ],
)
def test_a_list_holds_any_values(text: str, values: tuple[str, ...]) -> None:
    found = parse_variation(load_preset("demo"), text)
    assert isinstance(found, Choices)
    assert found.values == values


def test_two_settings_vary_together() -> None:
    plan = plan_sweep(
        "demo",
        (),
        [
            "tokenize.tokenizer.vocab_size+train.model.vocab_size=512,1024",
            "train.optimizer.muon_lr=0.01:0.05",
        ],
        "bytes,val_bpb",
    )
    assert plan.objectives == ("val_bpb", "bytes")
    assert plan.base_values() == ("1024", "0.05")
    spec = plan.with_values(("512", "0.02")).spec
    assert spec.tokenize.tokenizer.vocab_size == spec.train.model.vocab_size == 512
    assert assignments(plan.variations, ("512", "0.02"))[2] == "train.optimizer.muon_lr=0.02"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train.optimizer.muon_rl=0.01:0.05", r"no such setting\. Did you mean train\.optimizer\.muon_lr"),
        ("train.model.num_layers=0:8", r"num_layers = 0: must be at least 1$"),
        ("train.model.num_layers=4,300", "num_layers = 300: must be at most 256"),
        ("train.model.num_layers=4.5,6", "num_layers = 4.5: .*integer"),
        ("train.model.num_layers=4:8:0.5", "the step must be one"),
        ("train.optimizer.muon_lr=0.05:0.01", "first number must be below"),
        ("train.optimizer.muon_lr=0:0.01:log", "logarithmic scale begins above 0"),
        ("train.optimizer.muon_lr=0.01:0.05:lg", "Write LOW:HIGH, LOW:HIGH:log"),
        ("train.optimizer.muon_lr=0.01", "two values or more.* for one value use --set"),
        ("quantize.method=gptq_lite,ecqs", "Did you mean ecsq"),
        ("train.seed=1,2", "every trial has the same seed"),
        ("evaluate.scoring.stride=32,64", "scores of trials would not compare"),
        ("tokenize.split.val_fraction=0.1,0.2", "scores of trials would not compare"),
        ("muon_lr", "write NAME=VALUES"),
        ("merge.averaging.ema_decay=0.9,0.99", "no combination of these values is a run.*has no decay"),
        ("train.model.vocab_size=512,2048", "set both to the same number"),
    ],
)
def test_what_cannot_vary_is_refused_with_the_remedy(given: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"vary.*{message}"):
        plan_sweep("demo", (), [given], "val_bpb")


@pytest.mark.parametrize(
    ("overrides", "given", "objective", "message"),
    [
        ((), [], "val_bpb", "names no setting"),
        ((), [LAYERS, LAYERS], "val_bpb", "varies twice"),
        (("train.model.num_layers=4",), [LAYERS], "val_bpb", "is set as well"),
        ((), [LAYERS], "loss", "objective = loss: there are val_bpb"),
        ((), [LAYERS], "val_bpb,val_bpb", "objective = val_bpb,val_bpb"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(
    overrides: tuple[str, ...], given: list[str], objective: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        plan_sweep("demo", overrides, given, objective)


def test_one_combination_that_works_is_enough() -> None:
    """A layer of the value embedding that only the deeper model has makes failed trials, not a refusal."""
    given = ["train.model.num_layers=2,4", "train.model.value_embedding_layers=[1],[3]"]
    plan = plan_sweep("smoke", (), given, "val_bpb")
    with pytest.raises(SpecError, match="layers count from 0 to 1"):
        plan.with_values(("2", "[3]"))


def test_fewer_gpus_and_steps_than_the_presets_are_warned_of() -> None:
    given = ["train.optimizer.muon_lr=0.01:0.05:log"]
    few = ("train.compute.num_processes=1", "train.schedule.max_steps=500")
    [warning] = plan_sweep("record", few, given, "val_bpb").warnings
    assert "num_processes is 1, record has 8; train.schedule.max_steps is 500, record has 20000" in warning
    assert "what wins here may lose in record" in warning
    assert plan_sweep("record", (), given, "val_bpb").warnings == ()


def test_without_optuna_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemas.extras.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"needs the package optuna\. Install it: .* 'optuna>=5,<6'"):
        plan_sweep("demo", (), [LAYERS], "val_bpb")
