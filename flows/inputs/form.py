"""Form fields of the flows: flat parameters for common settings, bounded and described by the schemas.

A field left empty means the preset's value. `form_settings` turns the filled ones into dotted settings, which
`resolve` applies.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NewType,
    TypeAlias,
    TypeVar,
    get_args,
)

from pydantic import MISSING, BeforeValidator, Field, WithJsonSchema

from flows.inputs.starts import preset_names
from presets import PRESETS
from schemas.errors import SpecError
from schemas.introspect import describe_fields, find_setting, number, takes
from schemas.pipeline import PipelineSpec
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from schemas.tensor_formats import FormatRule, IntegerFormat, TensorFormat

F = TypeVar("F", bound=Callable[..., Any])
FormValue = NewType("FormValue", object)
"""What a form sends for a field of SETTINGS. Python code gives overrides instead: to mypy a field that takes
any value would be `return_state` as well.
"""

AS_IT_IS: Final = "as it is"
if TYPE_CHECKING:  # mypy reads no Literal that is made
    Preset: TypeAlias = str
    Bits: TypeAlias = str
    BitsOrNone: TypeAlias = str
    FormatOrNone: TypeAlias = str
    StageName: TypeAlias = str
else:
    # The user's as they are when a form is made: `fairway up` offers those of its folder.
    Preset = Literal[*preset_names()]
    StageName = Literal[*STAGES]
    Bits = IntegerFormat
    BitsOrNone = Literal[AS_IT_IS, *get_args(Bits)]
    _TOO_COARSE = ("int2", "int3")  # for the edge blocks and the embedding
    FormatOrNone = Literal[AS_IT_IS, *(name for name in get_args(TensorFormat) if name not in _TOO_COARSE)]
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}
_RATIO = r"(0?\.\d*[1-9]\d*|1|1\.0*)"
ClipGrid = Annotated[str, Field(pattern=rf"^\s*({_RATIO}(\s*,\s*{_RATIO})*)?\s*$")]
Assignment = Annotated[str, Field(pattern=r"^\s*[a-z_][a-z0-9_]*(\.[a-z0-9_]+)+\s*=")]


@dataclass(frozen=True)
class NumberField:
    """A field that sets one setting or several to the same number. Empty: the preset's."""

    settings: tuple[str, ...]
    empty: ClassVar[Any] = None

    def annotation(self) -> Any:
        kind = float if takes(find_setting(PipelineSpec, self.settings[0]).hint, float) else int
        return Annotated[kind | None, setting_field(self.settings[0])]

    def overrides(self, spec: PipelineSpec, name: str, value: Any) -> list[str]:
        return [f"{dotted}={value}" for dotted in self.settings]


@dataclass(frozen=True)
class FormatField:
    """A field that gives another format to the rules about `pattern`, under QAT as well as for the blob."""

    pattern: str
    choices: Any
    empty: ClassVar[Any] = AS_IT_IS

    def annotation(self) -> Any:
        return self.choices

    def overrides(self, spec: PipelineSpec, name: str, value: Any) -> list[str]:
        places = {"quantize.rules": spec.quantize.rules, "train.qat.rules": spec.train.qat.rules}
        found = (format_overrides(dotted, rules, {name: value}) for dotted, rules in places.items())
        return [setting for settings in found for setting in settings]


@dataclass(frozen=True)
class ClipField:
    """The field of the clip ratios."""

    empty: ClassVar[Any] = ""

    def annotation(self) -> Any:
        return ClipGrid

    def overrides(self, spec: PipelineSpec, name: str, value: Any) -> list[str]:
        return [clip_override(value)]


@dataclass(frozen=True)
class TextField:
    """The field of the user's own text, and what else a run needs to read it."""

    empty: ClassVar[Any] = ""

    def annotation(self) -> Any:
        return str

    def overrides(self, spec: PipelineSpec, name: str, value: Any) -> list[str]:
        from flows.inputs.own_text import text_settings  # libraries that a form without text does not need

        return text_settings([value], spec)


_FORMATS = {
    "bits": FormatField("*.weight", BitsOrNone),
    "edge_bits": FormatField("blocks.*", FormatOrNone),
    "embedding_format": FormatField("tok_emb.*", FormatOrNone),
}
SETTINGS: dict[str, NumberField | FormatField | ClipField | TextField] = {
    "text": TextField(),
    "seed": NumberField(("train.seed",)),
    "max_steps": NumberField(("train.schedule.max_steps",)),
    "max_seconds": NumberField(("train.schedule.max_seconds",)),
    "vocab_size": NumberField(("tokenize.tokenizer.vocab_size", "train.model.vocab_size")),
    "num_layers": NumberField(("train.model.num_layers",)),
    "model_dim": NumberField(("train.model.model_dim",)),
    "mlp_hidden": NumberField(("train.model.mlp_hidden",)),
    "swa_window": NumberField(("train.snapshots.start_lr_scale", "merge.averaging.start_lr_scale")),
    **_FORMATS,
    "clip_candidates": ClipField(),
    "limit_bytes": NumberField(("check_size.limit_bytes",)),
}
"""The fields of the pipeline's form that set settings, in its order; `with_setting_fields` makes them."""


def setting_field(dotted: str) -> WithJsonSchema:
    """How a form shows a field of the setting: a plain number box, with its help, unit, range, and what each
    preset has.

    (As the union that `int | None` is, it would be a pair of tabs.) Values from elsewhere are checked where
    they become settings.
    """
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


def with_setting_fields(*names: str) -> Callable[[F], F]:
    """For a flow's function: these fields of SETTINGS become its parameters, before its keyword-only ones.

    The function takes them by `**`. Below @flow, which reads the signature.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function, eval_str=True)
        own = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=SETTINGS[name].empty,
                annotation=SETTINGS[name].annotation(),
            )
            for name in names
        ]
        first = sum(item.kind is not item.KEYWORD_ONLY for item in own)
        function.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own[:first], *made, *own[first:]]
        )
        return function

    return decorate


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
    return {
        name: field.overrides(spec, name, fields[name])
        for name, field in SETTINGS.items()
        if fields.get(name) not in (None, "", AS_IT_IS)
    }


def clip_override(grid: str) -> str:
    """`1.0, 0.9` -> the setting."""
    return f"quantize.clip_candidates=[{', '.join(str(float(ratio)) for ratio in grid.split(','))}]"


def format_overrides(dotted: str, rules: Sequence[FormatRule], chosen: Mapping[str, str]) -> list[str]:
    """The formats of `chosen` (form field -> format) as settings of the rules under `dotted`.

    Raises SpecError where no rule is about such tensors.
    """
    changes = []
    for field, wanted in chosen.items():
        pattern = _FORMATS[field].pattern
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
            if default is None and name != "remote"
            else f"the store that FAIRWAY_{name.upper()} names"
            if name in ("store", "remote")
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
