"""Dotted settings: `apply_overrides(spec, ["quantize.method=round_to_nearest"])`, and the list of all
that can be set.
"""

import difflib
import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from schemas.base import in_our_words
from schemas.errors import SpecError
from schemas.introspect import (
    Child,
    children,
    every_setting,
    inherited_by_both,
    is_nullable,
    list_item,
    tag_name,
    takes,
    variants,
)
from schemas.pipeline import PipelineSpec

_STARTS_WITH_NAME = re.compile(r"[a-z_][a-z0-9_]*( = |: )")
# With an underscore, or a value behind it, a word may be a setting.
_MAYBE_A_SETTING = re.compile(r"(?<![\w.])(?=\w*_|[\w.]* ?=)[a-z][\w.]*\w")
RENAMED = {
    "quantize.ecsq.loss_nats": "quantize.loss_budget_nats",
    "quantize.ecsq.measured_shares": "quantize.measured_shares",
    "quantize.ecsq.floors": "quantize.floors",
}
"""Settings that had other names in an earlier version -> what they are called now."""
_NAMES_WHAT_IS_NOT_THERE = ("extra_forbidden", "missing", "unexpected_keyword_argument")
_LIMITS = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}
_PAIRED_ENDINGS = (("_fraction", "_steps"), ("_steps", "_fraction"))


def apply_overrides(spec: PipelineSpec, overrides: Sequence[str]) -> PipelineSpec:
    """`spec` with every `dotted.name=value` of `overrides` applied, validated as a whole.

    A value is read as JSON, otherwise as text; nothing after `=` empties an optional setting. Another `kind`
    of corpus or split, or `quantize.method`, takes the other's settings away; what both inherit stays.
    `x_fraction` empties its partner `x_steps` and the other way round. Items of a list go by index
    (`quantize.rules.0.format=int8`). Raises SpecError that names setting, value and remedy.
    """
    assignments = [_split(text) for text in overrides]
    given = {name for name, _ in assignments}
    tree = spec.model_dump(mode="json")
    # A tag decides which names exist beside it, wherever on the command line it stands.
    for name, text in sorted(assignments, key=lambda pair: not is_tag(pair[0])):
        _assign(tree, name, text, given)
    try:
        return PipelineSpec.model_validate(tree)
    except ValidationError as error:
        raise SpecError(explain(error, tree)) from error


def foreign_settings(spec: PipelineSpec, overrides: Sequence[str]) -> dict[str, str]:
    """Those of `overrides` that are settings of another `kind` or `method` than `spec` has once the tags
    among them are applied, and where each belongs.

    Raises SpecError as `apply_overrides` does.
    """
    chosen = apply_overrides(spec, [text for text in overrides if is_tag(_split(text)[0])])
    tree = chosen.model_dump(mode="json")
    found = {text: _where_it_belongs(tree, _split(text)[0]) for text in overrides}
    return {text: why for text, why in found.items() if why}


def check_value(spec: PipelineSpec, dotted: str, text: str) -> Child:
    """The setting as declared, if its type and limits allow the value that `text` stands for.

    Other settings do not count. Raises SpecError for an unknown setting, with the nearest, and for a value
    that the setting never has.
    """
    _, key, kind, child = _place(spec.model_dump(mode="json"), dotted)
    value = _read_value(dotted, text, child)
    if key == tag_name(kind):
        _variant(dotted, value, kind)
        return child
    problem = ""
    try:
        TypeAdapter(child.hint).validate_python(value)
    except ValidationError as error:
        problem = in_our_words(error.errors(include_url=False)[0])
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        broken = [
            f"{_LIMITS[bound][0]} {limit:g}"
            for bound, limit in child.limits
            if not _LIMITS[bound][1](value, limit)
        ]
        problem = problem or "".join(f"must be {limit}" for limit in broken[:1])
    if problem:
        raise SpecError(f"{dotted} = {text}: {_with_summary(problem, child)}")
    return child


def as_override(name: str, value: Any) -> str:
    """The setting with this value (plain JSON types) as `apply_overrides` takes it: dotted.name=value.

    None gives an empty value. A text that would read as something else stands in quotes.
    """
    if value is None:
        return f"{name}="
    if not isinstance(value, str):
        return f"{name}={json.dumps(value)}"
    try:
        reads_as_text = not isinstance(json.loads(value), str)
    except (ValueError, RecursionError):
        reads_as_text = True
    return f"{name}={value if reads_as_text else json.dumps(value)}"


def explain(error: ValidationError, tree: Any) -> str:
    """The findings of pydantic as lines `dotted.name = value: what is allowed`.

    `tree` is what was validated.
    """
    infos = every_setting(PipelineSpec)
    return "\n".join(
        dict.fromkeys(_explain_one(finding, tree, infos) for finding in error.errors(include_url=False))
    )


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SpecError(f"{text!r} is no setting: write dotted.name=value, for example train.seed=7")
    name = name.strip()
    for old, new in RENAMED.items():
        if f"{name}.".startswith(f"{old}."):
            raise SpecError(f"{name}: is now called {new}{name.removeprefix(old)}")
    return name, value


def is_tag(dotted: str) -> bool:
    """Whether the setting says which settings there are beside it."""
    parent, _, last = dotted.rpartition(".")
    child = Child(PipelineSpec, "")
    for name in parent.split("."):
        child = children(child.hint, None).get(name, Child(None, ""))
    return last == tag_name(child.hint) != ""


def _where_it_belongs(tree: Any, dotted: str) -> str:
    """In words, for a setting of another variant than the one that `tree` has there; else empty."""
    node, child, at = tree, Child(PipelineSpec, ""), ""
    for name in dotted.split("."):
        level = children(child.hint, node) if isinstance(node, dict) else {}
        if name not in level:
            return _of_another(dotted, at, name, child.hint, node)
        node, child, at = node[name], level[name], f"{at}.{name}".removeprefix(".")
    return ""


def _of_another(dotted: str, at: str, segment: str, hint: Any, node: Any) -> str:
    """The same for the `segment` of a name that the section `at`, which is `node`, does not have."""
    owners = [tag for tag, member in variants(hint).items() if segment in children(member, None)]
    if not owners:
        return ""
    tag = f"{at}.{tag_name(hint)}"
    return (
        f"{dotted}: {tag} = {node[tag_name(hint)]} has no such setting. It belongs to {tag} = "
        f"{' or '.join(owners)}: leave it out, or set that"
    )


def _place(tree: dict[str, Any], dotted: str) -> tuple[Any, str | int, Any, Child]:
    """The section or list that holds the setting, its name there, the section's type, and the setting.

    Raises SpecError where `tree` has no such setting.
    """
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
                of_another = _of_another(dotted, at, segment, kind, parent)
                raise SpecError(of_another or _unknown(at, segment, level))
            child = level[segment]
        node = parent[key]
    return parent, key, kind, child


def _assign(tree: dict[str, Any], dotted: str, text: str, given: set[str]) -> None:
    parent, key, kind, child = _place(tree, dotted)
    node = parent[key]
    value = _read_value(dotted, text, child)
    if key == tag_name(kind) and value != node:
        new = _variant(dotted, value, kind)
        kept = {name: parent[name] for name in inherited_by_both(new, variants(kind)[node])}
        parent.clear()
        parent.update(TypeAdapter(new).dump_python(new(), mode="json") | kept)
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


def _unknown(at: str, segment: str, level: Iterable[str]) -> str:
    names, prefix = sorted(level), f"{at}." if at else ""
    dotted = prefix + segment
    near = [prefix + name for name in difflib.get_close_matches(segment, names, n=3, cutoff=0.6)]
    elsewhere = [
        name for name in every_setting(PipelineSpec) if name.rpartition(".")[2] == segment and name != dotted
    ]
    hint = ""
    if near or elsewhere:
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


def _explain_one(finding: Any, tree: Any, infos: Mapping[str, Child]) -> str:
    node, path = tree, []
    for place, part in enumerate(finding["loc"], start=1):
        # A union's tag and a dataclass' name stand in loc but not in the tree.
        if part in node if isinstance(node, dict) else isinstance(node, list) and part in range(len(node)):
            node = node[part]
        elif place < len(finding["loc"]) or finding["type"] not in _NAMES_WHAT_IS_NOT_THERE:
            continue
        path.append(str(part))
    return _in_words(finding, ".".join(path), infos)


def _in_words(finding: Any, name: str, infos: Mapping[str, Child]) -> str:
    message, value = (
        in_our_words(finding),
        json.dumps(finding["input"], default=str, ensure_ascii=False),
    )
    match finding["type"]:
        case "value_error":  # a schema's own check, which names the field first
            message = _with_full_names(message, name, infos)
            if not name or message.startswith(f"{name}."):
                return message
            return f"{name}.{message}" if _STARTS_WITH_NAME.match(message) else f"{name}: {message}"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{name}: there is no such setting"
        case "tuple_type":
            meant = _as_list(name, finding["input"], infos.get(name))
            return f"{name} = {value}: is a list; write it as JSON: {meant}"
        case "dataclass_type" | "model_type" | "model_attributes_type" | "dataclass_exact_type":
            return f"{name} = {value}: is a section; set the settings inside it, as {name}.setting=value"
    return f"{name} = {value}: {_with_summary(message, infos.get(name))}"


def _with_summary(message: str, info: Child | None) -> str:
    """The message, and what the setting is where the message does not say its bound."""
    says_bound = message.startswith(tuple(f"must be {words} " for words, _ in _LIMITS.values()))
    return message if info is None or not info.summary or says_bound else f"{message}. It is: {info.summary}"


def _with_full_names(message: str, section: str, infos: Mapping[str, Child]) -> str:
    """The message of a check of `section`, which knows its settings by their names there."""

    def full(found: re.Match[str]) -> str:
        dotted = f"{section}.{found[0]}"
        return dotted if dotted in infos else found[0]

    return _MAYBE_A_SETTING.sub(full, message)


def _as_list(name: str, value: Any, info: Child | None) -> str:
    """The override by which a list has the items that `value` names; a shell keeps its quotes."""
    item = list_item(info.hint).hint if info else None
    if item is None or children(item, None) or not isinstance(value, (str, int, float)):
        return f"{name}=[…]"
    parts = [part.strip(" \"'") for part in str(value).strip(" []").split(",")]
    if not takes(item, str) and all(map(_is_number, parts)):
        return f"{name}=[{','.join(parts)}]"
    quoted = ",".join(json.dumps(part, ensure_ascii=False) for part in parts if part)
    return f"'{name}=[{quoted}]'"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None
