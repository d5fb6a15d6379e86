from dataclasses import replace

import pytest

from flows.specs import check_quantizer, quantize_spec, resolve
from schemas.errors import SpecError
from schemas.tokenize_corpus import TokenizedCorpus
from stages.script import as_shipped, program


@pytest.mark.parametrize("options", [[], ["package.compressed=true"]])
def test_a_fit_is_told_the_bytes_of_the_script_that_will_ship(options: list[str]) -> None:
    spec = resolve("record", options)
    shipped = as_shipped(program(spec.package, spec.package_spec().recipe)[0], spec.package)
    assert quantize_spec(spec) == replace(spec.quantize, fit=replace(spec.quantize.fit, code_bytes=len(shipped)))


def test_without_a_limit_or_with_bytes_given_nothing_is_added() -> None:
    for changes in ([], ["quantize.method=ecsq", "quantize.fit.limit_bytes=2000000", "quantize.fit.code_bytes=7"]):
        spec = resolve("demo", changes)
        assert quantize_spec(spec) == spec.quantize


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["quantize.method=gptq"], r"quantize\.calibration\.num_sequences = 32: the training split has 31 sequences of 64 tokens"),
        (
            ["quantize.method=ecsq", "quantize.fit.limit_bytes=20000", "quantize.calibration.num_sequences=31"],
            r"quantize\.fit\.limit_bytes = 20000: the script alone has [\d,]+ bytes; .*package\.compressed=true",
        ),
    ],
)
def test_what_quantization_would_refuse_is_refused_before_training(settings: list[str], named: str, tiny_tokens: TokenizedCorpus) -> None:
    spec = resolve("smoke", settings)
    tokenized = tiny_tokens.derive(train=tiny_tokens.train.derive(num_tokens=32 * 64))
    with pytest.raises(SpecError, match=named):
        check_quantizer(spec, tokenized)
    check_quantizer(resolve("smoke", []), tokenized)
