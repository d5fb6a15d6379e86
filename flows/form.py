"""What the run forms ask: flat fields for the settings that people change, bounded and described by the schemas.

A field left empty means the preset's value. `form_overrides` turns the filled ones into dotted settings, which `resolve` applies.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field

from presets import PRESETS
from schemas.errors import SpecError
from schemas.introspect import find_setting
from schemas.overrides import describe_fields
from schemas.pipeline import PipelineSpec
from schemas.settings import FormatRule

F = TypeVar("F", bound=Callable[..., Any])

AS_IT_IS: Final = "as it is"
Preset = Literal["smoke", "demo", "record", "reference"]
Bits = Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8"]
BitsOrNone = Literal["as it is", "int2", "int3", "int4", "int5", "int6", "int7", "int8"]
FormatOrNone = Literal["as it is", "int4", "int5", "int6", "int7", "int8", "fp16", "fp32"]
_RATIO = r"(0?\.\d*[1-9]\d*|1|1\.0*)"
ClipGrid = Annotated[str, Field(pattern=rf"^\s*({_RATIO}(\s*,\s*{_RATIO})*)?\s*$")]
Assignment = Annotated[str, Field(pattern=r"^\s*[a-z_][a-z0-9_]*(\.[a-z0-9_]+)+\s*=")]

SETTINGS: dict[str, tuple[str, ...]] = {
    "seed": ("train.seed",),
    "max_steps": ("train.schedule.max_steps",),
    "max_seconds": ("train.schedule.max_seconds",),
    "vocab_size": ("tokenize.tokenizer.vocab_size", "train.model.vocab_size"),
    "num_layers": ("train.model.num_layers",),
    "model_dim": ("train.model.model_dim",),
    "mlp_hidden": ("train.model.mlp_hidden",),
    "swa_window": ("train.snapshots.start_lr_scale", "merge.averaging.start_lr_scale"),
    "limit_bytes": ("check_size.limit_bytes",),
}
"""Form field -> the settings that it sets, all to the same value."""

_FORMATS = {"bits": "*.weight", "edge_bits": "blocks.*", "embedding_format": "tok_emb.*"}
"""Form field -> the rules that it gives another format, by their pattern."""


def bounds(field: str) -> Any:
    """The limits of a form field, as its setting has them."""
    limits: dict[str, Any] = dict(find_setting(PipelineSpec, SETTINGS[field][0]).limits)
    return Field(**limits)


def described(function: F) -> F:
    """Add to the docstring's Args a line for each form field: help, unit, range, and what each preset has."""
    inside = [name for name in inspect.signature(function).parameters if name in SETTINGS]
    function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), *(f"    {name}: {_describe(name)}" for name in inside)])
    return function


def form_overrides(spec: PipelineSpec, fields: Mapping[str, Any]) -> list[str]:
    """The filled fields as dotted settings of `spec`; bits count for training under QAT as well as for the blob."""
    filled = {name: value for name, value in fields.items() if value not in (None, "", AS_IT_IS)}
    changes = [f"{dotted}={filled[name]}" for name in SETTINGS if name in filled for dotted in SETTINGS[name]]
    if "clip_candidates" in filled:
        changes.append(clip_override(filled["clip_candidates"]))
    chosen = {name: filled[name] for name in _FORMATS if name in filled}
    for section, rules in (("quantize", spec.quantize.rules), ("train.qat", spec.train.qat.rules)):
        changes += format_overrides(f"{section}.rules", rules, chosen)
    return changes


def clip_override(grid: str) -> str:
    """`1.0, 0.9` -> the setting."""
    return f"quantize.clip_candidates=[{', '.join(str(float(ratio)) for ratio in grid.split(','))}]"


def format_overrides(dotted: str, rules: Sequence[FormatRule], chosen: Mapping[str, str]) -> list[str]:
    """The formats of `chosen` (form field -> format) as settings of the rules under `dotted`.

    Raises SpecError where no rule is about such tensors.
    """
    changes = []
    for field, wanted in chosen.items():
        pattern = _FORMATS[field]
        matching = [i for i, rule in enumerate(rules) if rule.pattern == pattern or rule.pattern.startswith(pattern.rstrip("*"))]
        if not matching:
            known = ", ".join(rule.pattern for rule in rules)
            raise SpecError(f"{field} = {wanted}: {dotted} has no rule for {pattern} (it has {known}); give the whole list: {dotted}=[…]")
        changes += [f"{dotted}.{index}.format={wanted}" for index in matching]
    return changes


def _describe(name: str) -> str:
    dotted = SETTINGS[name]
    setting = find_setting(PipelineSpec, dotted[0])
    infos = {preset: {info.name: info.value for info in describe_fields(make())} for preset, make in PRESETS.items()}
    values = ", ".join(f"{preset} {'none' if told[dotted[0]] is None else told[dotted[0]]}" for preset, told in infos.items())
    return f"{setting.summary}. Empty: the preset's ({values})"
