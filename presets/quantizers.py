"""Named quantizations of one trained model: what `fairway frontier` and benchmarks.quantizers compare.

A name is METHOD:SETTING. The setting is the matrices' format (`gptq:int5`), for ecsq the loss to spend in
nats a token (`ecsq:0.001`); `reference` has none. The token embedding is int8, but fp16 in the reference's
scheme.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import get_args

from schemas.errors import SpecError
from schemas.quantize import changed_to
from schemas.quantizer_settings import (
    QUANTIZER_OF_METHOD,
    AnyQuantizer,
    Ecsq,
    FitSettings,
    FittingSettings,
    GptqLite,
    QuantizerSettings,
    Reference,
)
from schemas.tensor_formats import FormatRule, IntegerFormat, TensorFormat

SCHEMES = (
    "reference",
    "round_to_nearest:int8",
    "round_to_nearest:int6",
    "round_to_nearest:int5",
    "gptq_lite:int6",
    "gptq_lite:int5",
    "gptq:int6",
    "gptq:int5",
    "ecsq:0.0003",
    "ecsq:0.001",
    "ecsq:0.003",
    "ecsq:0.01",
)
BY_BITS: dict[str, type[AnyQuantizer]] = {
    method: kind
    for method, kind in QUANTIZER_OF_METHOD.items()
    if kind is not Reference and not issubclass(kind, FittingSettings)
}
"""Methods whose setting is the format of the matrices."""


def choose_schemes(wanted: Sequence[str]) -> tuple[str, ...]:
    """The names of `wanted`, each once; a method alone stands for all of its SCHEMES, and nothing for all
    of them.

    Raises SpecError for what is no scheme.
    """
    chosen: list[str] = []
    for name in (item.strip() for item in wanted):
        of_method = [known for known in SCHEMES if known.partition(":")[0] == name]
        if not of_method:
            scheme_settings(name, GptqLite(), num_layers=1)
        chosen += of_method or [name]
    return tuple(dict.fromkeys(chosen)) or SCHEMES


def scheme_settings(name: str, base: QuantizerSettings, num_layers: int) -> AnyQuantizer:
    """The settings of the scheme for a model of `num_layers` blocks; what a name does not say is as in
    `base` where that has it, but nothing is fitted to a limit.

    Raises SpecError for what is no scheme.
    """
    method, _, setting = name.partition(":")
    if name == Reference.method:
        return changed_to(Reference, base, rules=format_rules("int6", "fp16", "int8", num_layers))
    for matrices in get_args(IntegerFormat):
        if method in BY_BITS and setting == matrices:
            return changed_to(BY_BITS[method], base, rules=format_rules(matrices, "int8"))
    if method == Ecsq.method:
        rules = format_rules("int8", "int8")
        try:
            return changed_to(Ecsq, base, rules=rules, loss_budget_nats=float(setting), fit=FitSettings())
        except ValueError as error:
            raise SpecError(
                f"scheme = {name}: give the loss to spend in nats a token, above 0, as ecsq:0.001"
            ) from error
    near = get_close_matches(name, SCHEMES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise SpecError(
        f"scheme = {name}: {hint}There are reference, ecsq:NATS, and {', '.join(BY_BITS)} "
        "with int2 to int8, as gptq:int5"
    )


def format_rules(
    matrices: TensorFormat, embedding: TensorFormat, edges: TensorFormat | None = None, num_layers: int = 1
) -> tuple[FormatRule, ...]:
    """Matrices, token embedding and, where given, the first and last blocks; vectors as fp32."""
    at_the_edges = (
        [FormatRule(f"blocks.{layer}.*.weight", edges) for layer in (0, num_layers - 1)] if edges else []
    )
    return (
        FormatRule("tok_emb.weight", embedding),
        *at_the_edges,
        FormatRule("*.weight", matrices),
        FormatRule("*", "fp32"),
    )
