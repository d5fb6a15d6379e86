"""Formats of stored tensors, and rules that choose one for each tensor by its name.

Standard library only: it ships. Training reads the rules too, to round as the quantizer will.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from schemas.settings_base import Settings, setting

IntegerFormat = Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8"]
TensorFormat = Literal[IntegerFormat, "fp16", "fp32"]
StoredFormat = Literal[TensorFormat, "coded"]


@dataclass(frozen=True)
class FormatRule(Settings):
    """Tensors whose name matches `pattern` (shell wildcards) are stored as `format`.

    The first match counts.
    """

    pattern: str = setting("*", "shell wildcards over tensor names")
    format: TensorFormat = setting("fp32", "how the tensor is stored")


DEFAULT_RULES = (
    FormatRule("tok_emb.weight", "fp16"),
    FormatRule("blocks.0.*.weight", "int8"),
    FormatRule("blocks.10.*.weight", "int8"),
    FormatRule("*.weight", "int6"),
    FormatRule("*", "fp32"),
)


def format_for(name: str, rules: tuple[FormatRule, ...]) -> TensorFormat:
    """Format of the tensor `name`: the first rule whose pattern matches. Raises ValueError if none does."""
    for rule in rules:
        if fnmatchcase(name, rule.pattern):
            return rule.format
    raise ValueError(f'no rule matches tensor {name!r}: end the rules with the pattern "*"')
