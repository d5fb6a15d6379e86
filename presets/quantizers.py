"""Named quantizations of one trained model: what `fairway frontier` and benchmarks.quantizers compare.

A name is METHOD:SETTING. The setting is the matrices' format (`gptq:int5`), for ecsq the loss to spend in
nats a token (`ecsq:0.001`); `reference` has none. The token embedding is int8, but fp16 in the reference's
scheme.
"""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from schemas.errors import SpecError
from schemas.quantizer_settings import FitSettings, QuantizeMethod, QuantizerSettings
from schemas.tensor_formats import FormatRule, TensorFormat

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
METHODS_BY_BITS: tuple[QuantizeMethod, ...] = ("round_to_nearest", "gptq_lite", "gptq")
MATRIX_FORMATS: tuple[TensorFormat, ...] = ("int2", "int3", "int4", "int5", "int6", "int7", "int8")


def choose_schemes(wanted: Sequence[str]) -> tuple[str, ...]:
    """The names of `wanted`, each once; a method alone stands for all of its SCHEMES, and nothing for all
    of them.

    Raises SpecError for what is no scheme.
    """
    chosen: list[str] = []
    for name in (item.strip() for item in wanted):
        of_method = [known for known in SCHEMES if known.partition(":")[0] == name]
        if not of_method:
            scheme_settings(name, QuantizerSettings(), num_layers=1)
        chosen += of_method or [name]
    return tuple(dict.fromkeys(chosen)) or SCHEMES


def scheme_settings(name: str, base: QuantizerSettings, num_layers: int) -> QuantizerSettings:
    """The settings of the scheme for a model of `num_layers` blocks; what a name does not say is as in
    `base`.

    Raises SpecError for what is no scheme.
    """
    method, _, setting = name.partition(":")
    base = replace(base, fit=FitSettings())
    if name == "reference":
        return replace(base, method="reference", rules=format_rules("int6", "fp16", "int8", num_layers))
    for by_bits in METHODS_BY_BITS:
        for matrices in MATRIX_FORMATS:
            if (method, setting) == (by_bits, matrices):
                return replace(base, method=by_bits, rules=format_rules(matrices, "int8"))
    if method == "ecsq":
        try:
            return replace(
                base,
                method="ecsq",
                rules=format_rules("int8", "int8"),
                ecsq=replace(base.ecsq, loss_nats=float(setting)),
            )
        except ValueError as error:
            raise SpecError(
                f"scheme = {name}: give the loss to spend in nats a token, above 0, as ecsq:0.001"
            ) from error
    near = get_close_matches(name, SCHEMES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise SpecError(
        f"scheme = {name}: {hint}There are reference, ecsq:NATS, and {', '.join(METHODS_BY_BITS)} "
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
