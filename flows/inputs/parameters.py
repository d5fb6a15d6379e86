"""Parameters of a flow, checked before anything is started: by their types, then as the flow itself does.

It imports neither Prefect nor torch.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from schemas.base import in_our_words
from schemas.errors import SpecError
from schemas.runtime import RunOptions
from stages.store.store import Store

F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[Mapping[str, Any], RunOptions, Store], object]
"""Refuses what a flow refuses before its first stage, by the flow's parameters, its options and the store."""
OptionOf = Callable[[str], str]
"""What the user calls a parameter."""

_CHOICE = re.compile(r"'([^']*)'")


def checked_by(check: Check) -> Callable[[F], F]:
    """For a flow: `check_parameters` calls `check` too. The flow calls the same functions."""

    def decorate(flow: F) -> F:
        flow.own_check = check  # type: ignore[attr-defined]
        return flow

    return decorate


def check_parameters(
    flow: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: RunOptions,
    store: Store,
    option_of: OptionOf,
) -> None:
    """Refuse what the flow would refuse with these arguments.

    Raises SpecError that names the option, the value and what is allowed.
    """
    signature = inspect.signature(flow.fn, eval_str=True)
    bound = signature.bind(*args, **kwargs, options=options)
    bound.apply_defaults()
    shown = flow.parameters.properties
    given = {
        name: _checked(signature.parameters[name], value, option_of, shown.get(name, {}).get("description"))
        for name, value in bound.arguments.items()
    }
    check: Check | None = getattr(flow, "own_check", None)
    if check is None:
        return
    try:
        check(given, options, store)
    except SpecError as error:
        raise SpecError(_as_typed(str(error), [*given, *RunOptions.model_fields], option_of)) from error


def _checked(parameter: inspect.Parameter, value: Any, option_of: OptionOf, about: str | None) -> Any:
    """The value as the flow will get it. `about`: what its form says. Raises SpecError."""
    if parameter.annotation is inspect.Parameter.empty:
        return value
    try:
        return TypeAdapter(parameter.annotation).validate_python(value)
    except ValidationError as error:
        option = option_of(parameter.name)
        found = [f"{option} {item['input']}: {_allowed(item, about)}" for item in error.errors()]
        raise SpecError("; ".join(dict.fromkeys(found))) from error


def _allowed(finding: Any, about: str | None) -> str:
    """What pydantic found, as what is allowed; with the nearest choice, if one is nearer than all others."""
    if finding["type"] == "string_pattern_mismatch" and about:
        return f"has another form. {' '.join(about.split())}"
    if finding["type"] == "literal_error":
        choices = _CHOICE.findall(finding["ctx"]["expected"])
        near = nearest(str(finding["input"]), choices)
        return f"must be one of {', '.join(choices)}" + (f". Did you mean {near}?" if near else "")
    return in_our_words(finding)


def nearest(text: str, choices: Sequence[str]) -> str | None:
    """The choice that is most like the text; None if none is like it, or if several are as much."""
    found = difflib.get_close_matches(text, choices, n=2)
    likeness = [difflib.SequenceMatcher(None, choice, text).ratio() for choice in found]
    return found[0] if len(found) == 1 or (found and likeness[0] > likeness[1]) else None


def _as_typed(message: str, parameters: Sequence[str], option_of: OptionOf) -> str:
    """`bits = int4: …` -> `--bits int4: …`."""
    name, equals, rest = message.partition(" = ")
    return f"{option_of(name)} {rest}" if equals and name in parameters else message
