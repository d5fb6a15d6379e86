"""What can be set: every field of a spec with value, unit, help and bounds, read from the schemas
themselves.
"""

import dataclasses
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemas.base import Schema

_UNITS = ("bytes", "tokens", "documents", "steps", "seconds", "fraction")
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_THOUSANDS_FROM = 10_000
_METADATA_BOUNDS = (("minimum", "ge"), ("above", "gt"), ("maximum", "le"))


@dataclass(frozen=True)
class Child:
    """A field as declared: its type, and what is known about it in words."""

    hint: Any
    help: str
    unit: str = ""
    bounds: str = ""
    limits: tuple[tuple[str, float], ...] = ()
    """The bounds as (ge | gt | le, number)."""

    @property
    def summary(self) -> str:
        return _summary(self)


@dataclass(frozen=True)
class SettingInfo:
    """One setting of a spec: `name` is dotted, `value` as plain JSON types, the rest is text and may be
    empty.
    """

    name: str
    value: Any
    unit: str
    help: str
    bounds: str

    @property
    def summary(self) -> str:
        return _summary(self)


def _summary(info: Child | SettingInfo) -> str:
    """Help, then unit and bounds in parentheses: `text that is read (bytes, above 0)`."""
    limits = ", ".join(part for part in (info.unit, info.bounds) if part)
    return f"{info.help} ({limits})" if info.help and limits else info.help or limits


def describe_fields(spec: Schema) -> list[SettingInfo]:
    """Every setting of `spec`, depth first, in the order of declaration.

    Of a union, the variant that is chosen.
    """
    return list(_walk("", Child(type(spec), ""), spec.model_dump(mode="json")))


def find_setting(root: type, dotted: str) -> Child:
    """The setting of that name as declared; of a union on the way the first variant that has it.

    Raises KeyError for an unknown name.
    """
    found = Child(root, "")
    for name in dotted.split("."):
        levels = [_fields(kind) for kind in variants(found.hint).values()] or [children(found.hint, None)]
        found = next((level for level in levels if name in level), {})[name]
    return found


@cache
def every_setting(root: type) -> dict[str, Child]:
    """Every setting that a spec of this type can have by its dotted name: of a union those of all variants,
    the first one's where several have it.
    """
    found: dict[str, Child] = {}
    for name, child in _declared("", Child(root, "")):
        found.setdefault(name, child)
    return found


def children(hint: Any, node: Mapping[str, Any] | None) -> dict[str, Child]:
    """The fields of a section; of a union those of the variant that its tag in `node` names.

    Empty for a plain value.
    """
    options = variants(hint)
    if options:
        chosen = (node or {}).get(tag_name(hint))
        return _fields(options.get(str(chosen), next(iter(options.values()))))
    kind = _bare(hint)
    return _fields(kind) if _is_section(kind) else {}


def variants(hint: Any) -> dict[str, type]:
    """tag -> class of a union whose members say by a tag which they are; empty for any other type."""
    tag, members = tag_name(hint), _members(hint)
    return {_only_choice(_fields(member)[tag].hint): member for member in members} if tag else {}


def tag_name(hint: Any) -> str:
    """The field that says which member of a union it is (`kind`, `method`); empty for any other type."""
    members = [member for member in _members(hint) if _is_section(member)]
    if len(members) < 2:
        return ""
    return next(name for name, child in _fields(members[0]).items() if _only_choice(child.hint))


def inherited_by_both(one: type, other: type) -> list[str]:
    """The settings that both have from a class that both are or derive from, but for tags: what stays where
    one takes the place of the other. Settings that only have the same name may mean different things.
    """
    bases = [base for base in one.__mro__ if _is_section(base) and issubclass(other, base)]
    fields = _fields(bases[0]) if bases else {}
    return [name for name in fields if not _only_choice(_fields(one)[name].hint)]


def _only_choice(hint: Any) -> str:
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return str(choices[0]) if len(choices) == 1 else ""


def list_item(hint: Any) -> Child:
    """What an item of a tuple field is."""
    return Child(get_args(_bare(hint))[0], "an item of a list")


def is_nullable(hint: Any) -> bool:
    return type(None) in _members(hint)


def takes(hint: Any, kind: type) -> bool:
    """Whether a value of exactly the type `kind` may stand here."""
    for member in _members(hint):
        if member is kind or (
            get_origin(member) is Literal and any(type(choice) is kind for choice in get_args(member))
        ):
            return True
    return False


def number(value: Any) -> str:
    """A setting's value on one line, with thousands separated."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= _THOUSANDS_FROM else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(" → ".join(str(item) for item in entry.values()) for entry in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _walk(name: str, child: Child, value: Any) -> Iterator[SettingInfo]:
    level = children(child.hint, value) if isinstance(value, Mapping) else {}
    if not level:
        yield SettingInfo(name, value, child.unit, child.help, child.bounds)
        return
    kinds = variants(child.hint)
    for key, inner in level.items():
        if key == tag_name(child.hint):
            inner = Child(inner.hint, _help_of_tag(key, kinds) or child.help, bounds=_one_of(kinds))
        yield from _walk(f"{name}.{key}" if name else key, inner, value[key])


def _help_of_tag(tag: str, kinds: Mapping[str, type]) -> str:
    """What each choice means, where the tag's fields say so."""
    told = {name: _fields(kind)[tag].help for name, kind in kinds.items()}
    return "; ".join(f"{name}: {help}" for name, help in told.items()) if all(told.values()) else ""


def _declared(name: str, child: Child) -> Iterator[tuple[str, Child]]:
    levels = [_fields(kind) for kind in variants(child.hint).values()] or [children(child.hint, None)]
    if not any(levels):
        yield name, child
    for level in levels:
        for key, inner in level.items():
            yield from _declared(f"{name}.{key}" if name else key, inner)


@cache
def _fields(cls: type) -> dict[str, Child]:
    if issubclass(cls, BaseModel):
        return {name: _pydantic_child(name, field) for name, field in cls.model_fields.items()}
    hints = get_type_hints(cls, include_extras=True)
    return {item.name: _dataclass_child(hints[item.name], item) for item in dataclasses.fields(cls)}  # type: ignore[arg-type]


def _dataclass_child(hint: Any, item: dataclasses.Field) -> Child:
    told = item.metadata
    limits = tuple((bound, told[key]) for key, bound in _METADATA_BOUNDS if told.get(key) is not None)
    return Child(hint, told.get("help", ""), told.get("unit", ""), _bounds(hint, limits), limits)


def _pydantic_child(name: str, field: FieldInfo) -> Child:
    found = list(field.metadata)
    for member in _raw_members(field.annotation):
        found += getattr(member, "__metadata__", ())
    limits = tuple(
        (key, getattr(item, key)) for item in found for key in _BOUNDS if getattr(item, key, None) is not None
    )
    return Child(
        field.annotation, field.description or "", _unit(name), _bounds(field.annotation, limits), limits
    )


def _bounds(hint: Any, limits: tuple[tuple[str, float], ...]) -> str:
    return ", ".join([*_choices(hint), *(f"{_BOUNDS[bound]} {value:,}" for bound, value in limits)])


def _choices(hint: Any) -> list[str]:
    return [_one_of(get_args(member)) for member in _members(hint) if get_origin(member) is Literal]


def _one_of(names: Any) -> str:
    return " | ".join(str(name) for name in names)


def _unit(name: str) -> str:
    last = name.rpartition("_")[2]
    return last if last in _UNITS else ""


def _raw_members(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Annotated:
        inner = get_args(hint)[0]
        return get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (hint,)
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _members(hint: Any) -> list[Any]:
    return [_bare(member) for member in _raw_members(hint)]


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel))
