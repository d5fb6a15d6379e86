import pytest
import torch

from schemas.quantizer_settings import GptqLite, QuantizerSettings, Reference, RoundToNearest
from schemas.tensor_formats import FormatRule
from stages.core.calibrated.whole_model import quantize_state
from stages.core.quantizers.by_rules import FormatRuleError

RULES = (FormatRule("a", "int6"), FormatRule("b", "fp16"), FormatRule("*", "fp32"))


@pytest.mark.parametrize("kind", [RoundToNearest, GptqLite, Reference])
def test_each_tensor_is_kept_in_the_format_of_its_first_rule_in_the_states_order(
    kind: type[QuantizerSettings],
) -> None:
    state = {"c": torch.randn(3), "a": torch.randn(4, 5), "b": torch.randn(2, 2)}
    model = quantize_state(state, kind(rules=RULES))
    assert model.method == kind.method
    assert [(tensor.name, tensor.format) for tensor in model.tensors] == [
        ("c", "fp32"),
        ("a", "int6"),
        ("b", "fp16"),
    ]
    assert torch.equal(model.tensors[0].dequantized(), state["c"])
    assert torch.equal(model.tensors[2].dequantized(), state["b"].half().float())
    a = model.tensors[1]
    assert a.stored_bytes == 20 + 2 * 4
    assert (a.dequantized() - state["a"]).abs().max() <= a.scales.float().max() * 10


def test_tensors_kept_as_they_are_do_not_alias_the_state() -> None:
    state = {"c": torch.ones(3)}
    kept = quantize_state(state, GptqLite(rules=RULES)).tensors[0]
    state["c"].zero_()
    assert kept.dequantized().tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 4)])
def test_an_integer_format_for_anything_but_a_matrix_is_refused_with_the_remedy(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(
        FormatRuleError, match=r'a has shape .* only matrices .* put a rule \("a", "fp16" or "fp32"\)'
    ):
        quantize_state({"a": torch.ones(shape)}, GptqLite(rules=RULES))


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_the_tensors_name(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"tensor {name} holds values that are not finite"):
        quantize_state({name: torch.tensor([[1.0, bad]])}, GptqLite(rules=RULES))


@pytest.mark.parametrize("name", ["a", "b"])
def test_values_beyond_fp16_are_refused_with_the_tensors_name_and_the_remedy(name: str) -> None:
    with pytest.raises(ValueError, match=f"tensor {name} holds a value of 1e\\+07, .*store it as fp32"):
        quantize_state({name: torch.tensor([[1e7, 0.0]])}, GptqLite(rules=RULES))
