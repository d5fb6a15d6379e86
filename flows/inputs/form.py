"""What the run forms ask: flat fields for the settings that people change, bounded and described by the
schemas.

A field left empty means the preset's value. `form_settings` turns the filled ones into dotted settings, which
`resolve` applies.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import MISSING, BeforeValidator, Field, WithJsonSchema

from presets import PRESETS
from schemas.errors import SpecError
from schemas.introspect import find_setting, number, takes
from schemas.overrides import describe_fields
from schemas.pipeline import PipelineSpec
from schemas.runtime import RunOptions
from schemas.tensor_formats import FormatRule

F = TypeVar("F", bound=Callable[..., Any])

AS_IT_IS: Final = "as it is"
Preset = Literal["smoke", "demo", "medium", "record", "reference"]
Bits = Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8"]
BitsOrNone = Literal["as it is", "int2", "int3", "int4", "int5", "int6", "int7", "int8"]
FormatOrNone = Literal["as it is", "int4", "int5", "int6", "int7", "int8", "fp16", "fp32"]
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}
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


def setting_field(field: str) -> WithJsonSchema:
    """How a form shows the field: a plain number box, with its setting's help, unit, range, and what each
    preset has.

    (As the union that `int | None` is, it would be a pair of tabs.) Values from elsewhere are checked where
    they become settings.
    """
    dotted = SETTINGS[field][0]
    setting = find_setting(PipelineSpec, dotted)
    infos = {
        preset: {info.name: info.value for info in describe_fields(make())}
        for preset, make in PRESETS.items()
    }
    values = ", ".join(f"{preset} {number(told[dotted]) or 'none'}" for preset, told in infos.items())
    limits: dict[str, Any] = {_LIMITS[bound]: value for bound, value in setting.limits}
    kind = "number" if takes(setting.hint, float) else "integer"
    return WithJsonSchema(
        {"type": kind, **limits, "description": f"{setting.summary}. Empty: the preset's ({values})."}
    )


def number_field(kind: Literal["integer", "number"], **limits: float) -> WithJsonSchema:
    """The same for a number that is no setting: `minimum`, `maximum`, `exclusiveMinimum`.

    Validated by its own annotation as well.
    """
    return WithJsonSchema({"type": kind, **limits})


def with_empty_fields(form: F) -> F:
    """For a flow: its form shows an optional number as an empty field, and takes it back empty.

    A schema that says `default: null` makes the form send null, which is no integer. So the signature that
    Prefect makes the form's schema from has no such default; the one that is called keeps it.
    """
    signature = inspect.signature(form)
    shown = [
        item.replace(default=MISSING) if _starts_empty(item) else item
        for item in signature.parameters.values()
    ]
    form.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return form


def form_settings(spec: PipelineSpec, fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each filled field as the dotted settings of `spec` that it stands for.

    Bits count for training under QAT as well as for the blob. Raises SpecError where `spec` has no rule for a
    format.
    """
    filled = {name: value for name, value in fields.items() if value not in (None, "", AS_IT_IS)}
    found = {
        name: [f"{dotted}={filled[name]}" for dotted in SETTINGS[name]] for name in SETTINGS if name in filled
    }
    if "clip_candidates" in filled:
        found["clip_candidates"] = [clip_override(filled["clip_candidates"])]
    for name in _FORMATS:
        if name in filled:
            chosen = {name: filled[name]}
            for section, rules in (("quantize", spec.quantize.rules), ("train.qat", spec.train.qat.rules)):
                found.setdefault(name, []).extend(format_overrides(f"{section}.rules", rules, chosen))
    return found


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
        matching = [
            i
            for i, rule in enumerate(rules)
            if rule.pattern == pattern or rule.pattern.startswith(pattern.rstrip("*"))
        ]
        if not matching:
            known = ", ".join(rule.pattern for rule in rules)
            raise SpecError(
                f"{field} = {wanted}: {dotted} has no rule for {pattern} (it has {known}); give the "
                f"whole list: {dotted}=[…]"
            )
        changes += [f"{dotted}.{index}.format={wanted}" for index in matching]
    return changes


def _starts_empty(parameter: inspect.Parameter) -> bool:
    return parameter.default is None and any(
        isinstance(item, WithJsonSchema) for item in get_args(parameter.annotation)
    )


def _options_schema() -> WithJsonSchema:
    """The run options as a group of plain fields, without the default values: what a form fills in by
    itself counts as chosen.
    """
    fields = {}
    for name, field in RunOptions.model_json_schema()["properties"].items():
        kind: dict[str, Any] = next(
            (branch for branch in field.pop("anyOf", ()) if branch["type"] != "null"), {}
        )
        default = field.pop("default", None)
        told = (
            "none"
            if default is None
            else "the store that FAIRWAY_STORE names"
            if name == "store"
            else default
        )
        fields[name] = (
            kind
            | field
            | {"title": name, "description": f"{field['description'].split('; empty:')[0]}. Empty: {told}."}
        )
    return WithJsonSchema({"type": "object", "properties": fields, "additionalProperties": False})


def _without_empty(given: Any) -> Any:
    return (
        {name: value for name, value in given.items() if value not in (None, "")}
        if isinstance(given, Mapping)
        else given
    )


Options = Annotated[RunOptions | None, BeforeValidator(_without_empty), _options_schema()]
"""Where and how the stages run, as a form asks for it."""
