from dataclasses import replace

import pytest

from flows.inputs.specs import Plan, check_quantizer, plan_run, resolve, settings_between
from schemas.errors import SpecError
from schemas.quantize import changed_to
from schemas.quantizer_settings import Ecsq, QuantizerSettings, RoundToNearest
from schemas.tokenize_corpus import TokenizedCorpus
from stages.packaging.script import as_shipped, program

NO_QAT = ["train.qat.start_lr_scale=0"]


@pytest.mark.parametrize("options", [[], ["package.compressed=true"]])
def test_a_fit_is_told_the_bytes_of_the_script_that_will_ship(options: list[str]) -> None:
    plan = plan_run("record", options)
    spec = plan.spec
    shipped = as_shipped(program(spec.package, spec.package_spec().recipe)[0], spec.package)
    assert plan.quantize == replace(spec.quantize, fit=replace(spec.quantize.fit, code_bytes=len(shipped)))


def test_without_a_limit_or_with_bytes_given_nothing_is_added() -> None:
    for changes in (
        [],
        [*NO_QAT, "quantize.method=ecsq", "quantize.fit.limit_bytes=2000000", "quantize.fit.code_bytes=7"],
    ):
        spec = resolve("demo", changes)
        assert Plan("demo", spec).quantize == spec.quantize


SHORT = ["quantize.calibration.sequence_length=64"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            ["quantize.method=gptq", *SHORT, "quantize.calibration.num_sequences=32"],
            r"quantize\.calibration\.num_sequences = 32: the training split has 31 sequences of 64 tokens",
        ),
        (
            ["quantize.method=gptq", "quantize.calibration.sequence_length=4000"],
            r"quantize\.calibration\.sequence_length = 4000: the training split has 2048 tokens, not one",
        ),
        (
            [*NO_QAT, "quantize.method=ecsq", "quantize.fit.limit_bytes=20000"],
            r"quantize\.fit\.limit_bytes = 20000: the script alone has [\d,]+ bytes; "
            r".*package\.compressed=true",
        ),
    ],
)
def test_what_quantization_would_refuse_is_refused_before_training(
    settings: list[str], named: str, tiny_tokens: TokenizedCorpus
) -> None:
    tokenized = tiny_tokens.derive(train=tiny_tokens.train.derive(num_tokens=32 * 64))
    with pytest.raises(SpecError, match=named):
        check_quantizer(plan_run("smoke", settings), tokenized)
    check_quantizer(plan_run("smoke", []), tokenized)
    check_quantizer(plan_run("smoke", ["quantize.method=gptq", *SHORT]), tokenized)  # takes what there is


@pytest.mark.parametrize(
    ("changes", "grid", "candidates"),
    [
        ([], "gptq_lite", None),
        (["quantize.clip_candidates=[1.0, 0.9]"], "gptq_lite", (1.0, 0.9)),
        (["quantize.method=round_to_nearest"], "round_to_nearest", ()),
        (["quantize.method=gptq"], "round_to_nearest", ()),
        (["quantize.method=reference"], "reference", ()),
        (NO_QAT, "of_quantizer", ()),
        ([*NO_QAT, "quantize.method=ecsq"], "of_quantizer", ()),
        (["quantize.method=ecsq", "train.qat.grid=reference"], "reference", ()),
    ],
)
def test_late_qat_takes_the_quantizers_grid(
    changes: list[str], grid: str, candidates: tuple[float, ...] | None
) -> None:
    spec = resolve("demo", changes)
    assert spec.train.qat.grid == grid
    assert spec.train.qat.clip_candidates == (
        spec.quantize.clip_candidates if candidates is None else candidates
    )


def test_without_qat_another_quantizer_is_not_another_training() -> None:
    trainings = {
        resolve("demo", [*NO_QAT, f"quantize.method={method}"]).train
        for method in ("gptq_lite", "reference", "gptq", "ecsq")
    }
    assert len(trainings) == 1
    assert (
        resolve("demo", ["quantize.method=gptq"]).train
        == resolve("demo", ["quantize.method=round_to_nearest"]).train
    )


def test_qat_for_a_quantizer_without_a_grid_is_refused_with_the_remedy() -> None:
    message = (
        r"train\.qat\.start_lr_scale = 0\.2 and quantize\.method = ecsq: .* set train\.qat\.start_lr_scale=0"
    )
    with pytest.raises(SpecError, match=message):
        resolve("demo", ["quantize.method=ecsq"])


@pytest.mark.parametrize("setting", ["train.qat.grid=gptq_lite", "train.qat.clip_candidates=[0.9]"])
def test_a_grid_and_its_candidates_go_together(setting: str) -> None:
    with pytest.raises(SpecError, match=r"train\.qat\.clip_candidates = .* leave grid at of_quantizer"):
        resolve("demo", [setting])


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("quantize.method=gptq",),
        ("quantize.method=gptq", "quantize.calibration.num_sequences=3"),
        ("tokenize.corpus.kind=files", 'tokenize.corpus.paths=["a.txt"]'),
        ("train.qat.grid=reference",),
    ],
)
def test_a_run_is_made_of_its_preset_again_with_the_grid_left_to_the_quantizer(
    changes: tuple[str, ...],
) -> None:
    assert settings_between("demo", resolve("demo", changes)) == changes


@pytest.mark.parametrize("quantizer", [RoundToNearest, Ecsq])
def test_weights_that_were_trained_for_another_quantizer_are_made_of_their_preset_again(
    quantizer: type[QuantizerSettings],
) -> None:
    """As `requantize` leaves them: the quantizer changed, the training did not."""
    earlier = resolve("smoke", [])
    spec = earlier.derive(quantize=changed_to(quantizer, earlier.quantize))
    changes = settings_between("smoke", spec)
    assert "train.qat.grid=gptq_lite" in changes
    assert resolve("smoke", changes) == spec
