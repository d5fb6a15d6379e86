from dataclasses import replace

from flows.specs import quantize_spec, resolve
from stages.bundle import ENTRY_MODULE, bundle


def test_a_fit_is_told_the_bytes_of_the_script_that_will_ship() -> None:
    spec = resolve("record", [])
    source, _ = bundle(ENTRY_MODULE, spec.package.keep_comments)
    assert quantize_spec(spec) == replace(spec.quantize, fit=replace(spec.quantize.fit, code_bytes=len(source.encode())))
    shorter = quantize_spec(resolve("record", ["package.keep_comments=false"])).fit.code_bytes
    assert shorter is not None
    assert shorter < 0.8 * len(source.encode())


def test_without_a_limit_or_with_bytes_given_nothing_is_added() -> None:
    for changes in ([], ["quantize.method=ecsq", "quantize.fit.limit_bytes=2000000", "quantize.fit.code_bytes=7"]):
        spec = resolve("demo", changes)
        assert quantize_spec(spec) == spec.quantize
