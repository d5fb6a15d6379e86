"""Dotted settings: `apply_overrides(spec, ["quantize.method=round_to_nearest"])`, and the list of all
that can be set.
"""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from schemas.errors import SpecError
from schemas.introspect import (
    Child,
    SettingInfo,
    children,
    describe_fields,
    is_nullable,
    list_item,
    takes,
    variants,
)
from schemas.pipeline import PipelineSpec

_STARTS_WITH_NAME = re.compile(r"[a-z_][a-z0-9_]*( = |: )")
_PAIRED_ENDINGS = (("_fraction", "_steps"), ("_steps", "_fraction"))


def apply_overrides(spec: PipelineSpec, overrides: Sequence[str]) -> PipelineSpec:
    """`spec` with every `dotted.name=value` of `overrides` applied, validated as a whole.

    A value is read as JSON, otherwise as text; nothing after `=` empties an optional setting. A new `kind`
    takes the other kind's fields away; `x_fraction` empties its partner `x_steps` and the other way round.
    Items of a list go by index (`quantize.rules.0.format=int8`). Raises SpecError that names setting, value
    and remedy.
    """
    assignments = [_split(text) for text in overrides]
    given = {name for name, _ in assignments}
    tree = spec.model_dump(mode="json")
    # A kind decides which names exist beside it, wherever on the command line it stands.
    for name, text in sorted(assignments, key=lambda pair: not pair[0].endswith(".kind")):
        _assign(tree, name, text, given)
    try:
        return PipelineSpec.model_validate(tree)
    except ValidationError as error:
        raise SpecError(explain(error, tree)) from error


def explain(error: ValidationError, tree: Any) -> str:
    """The findings of pydantic as lines `dotted.name = value: what is allowed`.

    `tree` is what was validated.
    """
    infos = {info.name: info for info in describe_fields(PipelineSpec())}
    return "\n".join(
        dict.fromkeys(_explain_one(finding, tree, infos) for finding in error.errors(include_url=False))
    )


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SpecError(f"{text!r} is no setting: write dotted.name=value, for example train.seed=7")
    return name.strip(), value


def _assign(tree: dict[str, Any], dotted: str, text: str, given: set[str]) -> None:
    segments = dotted.split(".")
    node: Any = tree
    key: str | int = ""
    child = Child(PipelineSpec, "", "")
    for depth, segment in enumerate(segments):
        parent, kind = node, child.hint
        at = ".".join(segments[:depth])
        if isinstance(parent, list):
            child, key = list_item(kind), _index(at, segment, parent)
        elif not isinstance(parent, dict):
            raise SpecError(
                f"{dotted}: {at} is a single value ({json.dumps(parent)}) with no settings inside; "
                f"write {at}=value"
            )
        else:
            level, key = children(kind, parent), segment
            if segment not in level:
                raise SpecError(_unknown(at, segment, level, kind))
            child = level[segment]
        node = parent[key]
    value = _read_value(dotted, text, child)
    if key == "kind" and value != node:
        fresh = _variant(dotted, value, kind).model_validate({})
        parent.clear()
        parent.update(fresh.model_dump(mode="json"))
    elif value is not None:
        _clear_partner(parent, str(key), dotted, given)
    parent[key] = value


def _index(at: str, segment: str, items: list[Any]) -> int:
    if not segment.isdecimal() or int(segment) >= len(items):
        allowed = f"0 to {len(items) - 1}" if items else "none, it is empty"
        raise SpecError(
            f"{at}.{segment}: no such item; indices of {at}: {allowed}. For another length give the "
            f"whole list: {at}=[…]"
        )
    return int(segment)


def _unknown(at: str, segment: str, level: Iterable[str], kind: Any) -> str:
    names, prefix = sorted(level), f"{at}." if at else ""
    dotted = prefix + segment
    near = [prefix + name for name in difflib.get_close_matches(segment, names, n=3, cutoff=0.6)]
    everywhere = [info.name for info in describe_fields(PipelineSpec())]
    elsewhere = [name for name in everywhere if name.rpartition(".")[2] == segment and name != dotted]
    owners = [tag for tag, member in variants(kind).items() if segment in children(member, None)]
    hint = ""
    if owners:
        hint = f" It belongs to {at}.kind = {' or '.join(owners)}."
    elif near or elsewhere:
        hint = f" Did you mean {' or '.join(near or elsewhere[:3])}?"
    return (
        f"{dotted}: there is no such setting.{hint} {f'Settings of {at}' if at else 'Sections'}: "
        f"{', '.join(names)}"
    )


def _read_value(dotted: str, text: str, child: Child) -> Any:
    if text == "" and is_nullable(child.hint):
        return None
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    if takes(child.hint, str) and not isinstance(value, (str, type(None))):
        return text
    if value is None and not is_nullable(child.hint):
        return text
    if isinstance(value, bool) and not takes(child.hint, bool):
        raise SpecError(f"{dotted} = {text}: true and false are for switches; this one is: {child.summary}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _variant(dotted: str, value: Any, kind: Any) -> Any:
    known = variants(kind)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        raise SpecError(
            f"{dotted} = {value}: must be one of {', '.join(known)}."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    return known[value]


def _clear_partner(parent: Any, key: str, dotted: str, given: set[str]) -> None:
    """Of a pair of which exactly one counts, giving one empties the other, unless both are given (which
    validation refuses).
    """
    for ending, other in _PAIRED_ENDINGS:
        partner = key.removesuffix(ending) + other
        if (
            key.endswith(ending)
            and isinstance(parent, dict)
            and partner in parent
            and dotted.removesuffix(ending) + other not in given
        ):
            parent[partner] = None


def _explain_one(finding: Any, tree: Any, infos: dict[str, SettingInfo]) -> str:
    node, path = tree, []
    for part in finding["loc"]:
        # A union's tag and a dataclass' name stand in loc but not in the tree.
        if part in node if isinstance(node, dict) else isinstance(node, list) and part in range(len(node)):
            node = node[part]
        elif finding["type"] in ("extra_forbidden", "missing", "unexpected_keyword_argument"):
            path.append(str(part))
            continue
        else:
            continue
        path.append(str(part))
    return _in_words(finding, ".".join(path), infos)


def _in_words(finding: Any, name: str, infos: dict[str, SettingInfo]) -> str:
    message, value = (
        finding["msg"].removeprefix("Value error, "),
        json.dumps(finding["input"], default=str, ensure_ascii=False),
    )
    match finding["type"]:
        case "value_error":  # a schema's own check, which names the field first
            return (
                f"{name}.{message}"
                if name and _STARTS_WITH_NAME.match(message)
                else f"{name}: {message}".removeprefix(": ")
            )
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{name}: there is no such setting"
        case "tuple_type":
            return (
                f"{name} = {value}: is a list; write it as JSON: "
                f"{name}=[{value if isinstance(finding['input'], str) else '…'}]"
            )
        case "dataclass_type" | "model_type" | "model_attributes_type" | "dataclass_exact_type":
            return f"{name} = {value}: is a section; set the settings inside it, as {name}.setting=value"
    info = infos.get(name)
    return f"{name} = {value}: {message}" + (f" ({info.summary})" if info and info.summary else "")
