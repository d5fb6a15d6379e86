"""What a group of settings is: fields with help, unit and bounds, checked whenever one is made.

Standard library only: it ships.

Every field carries its help, unit and bounds as metadata; `Settings` checks types, choices and bounds
whenever one is made, by pydantic, by `dataclasses.replace` or by hand, and says which field, which value and
what is allowed. A number takes its field's type, so that 600 and 600.0 are one setting.
"""

import dataclasses
import math
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

S = TypeVar("S", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    later: bool = False,
) -> Any:
    """A dataclass field: default, one line of help, unit, and inclusive bounds (`above` is exclusive).

    `later`: added to settings that runs had before. Its default means what they did without it, so the
    default is no part of an identity, and earlier runs keep their names.
    """
    metadata = {"help": help, "unit": unit, "minimum": minimum, "maximum": maximum, "above": above}
    metadata["later"] = later
    if isinstance(default, Settings):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Base: types, choices and bounds checked at construction, unknown fields refused by pydantic."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        hints = _type_hints(type(self))  # type: ignore[arg-type]
        for item in fields(self):
            value = _of_type(item.name, hints[item.name], getattr(self, item.name))
            object.__setattr__(self, item.name, value)  # frozen for everybody else
            values = value if isinstance(value, tuple) else (value,)
            for number in values:
                if isinstance(number, bool) or not isinstance(number, (int, float)):
                    continue
                _check_bounds(item.name, number, item.metadata)
        self.check()

    def derive(self, **changes: Any) -> Self:
        """A copy with `changes`, checked again. Raises ValueError as for one made by hand."""
        return dataclasses.replace(self, **changes)

    def check(self) -> None:
        """Conditions between fields; raises ValueError."""


def _check_bounds(name: str, number: float, metadata: Any) -> None:
    minimum, maximum, above = metadata.get("minimum"), metadata.get("maximum"), metadata.get("above")
    if not math.isfinite(number):
        raise ValueError(f"{name} = {number}: must be a finite number")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} = {number}: must be at least {minimum}")
    if above is not None and number <= above:
        raise ValueError(f"{name} = {number}: must be above {above}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} = {number}: must be at most {maximum}")


@cache
def _type_hints(cls: type[Settings]) -> dict[str, Any]:
    return get_type_hints(cls)


def _of_type(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint` of the field. Raises ValueError, which begins with the field's name."""
    if get_origin(hint) in (Union, UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        options = _without_none(hint)
        if len(options) > 1:
            return _of_one_type(name, options, value)
        hint = options[0]
    if get_origin(hint) is tuple and isinstance(value, (tuple, list)):
        return tuple(_of_type(name, get_args(hint)[0], item) for item in value)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ValueError(f"{name} = {value!r}: must be {' or '.join(map(repr, get_args(hint)))}")
    number = isinstance(value, Real) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and (isinstance(value, Integral) or float(value).is_integer()):
        return int(value)
    if isinstance(hint, type) and hint not in (int, float) and isinstance(value, hint):
        return value
    wanted = getattr(hint, "__name__", "value") if get_origin(hint) is None else "list"
    raise ValueError(f"{name} = {value!r}: must be of type {wanted}, not {type(value).__name__}")


def _of_one_type(name: str, options: list[Any], value: Any) -> Any:
    if type(value) in options:
        return value
    wanted = " or ".join(option.__name__ for option in options)
    raise ValueError(f"{name} = {value!r}: must be of type {wanted}, not {type(value).__name__}")


def from_dict(cls: type[S], values: dict[str, Any]) -> S:
    """Settings from plain JSON types (the inverse of `dataclasses.asdict`).

    Raises ValueError for an unknown field.
    """
    hints = _type_hints(cls)  # type: ignore[arg-type]
    unknown = set(values) - {item.name for item in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}")
    return cls(**{name: _from_json(hints[name], value) for name, value in values.items()})


def _from_json(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, UnionType) and value is not None:
        options = _without_none(hint)
        hint = options[0] if len(options) == 1 else _tagged(options, value)
    if get_origin(hint) is tuple:
        return tuple(_from_json(get_args(hint)[0], item) for item in value)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)  # type: ignore[type-var, arg-type]
    return value


def _tagged(options: list[Any], values: Any) -> Any:
    """The class of a union that says which it is by a field with a single allowed value, as `values` have it.

    Raises ValueError where none does.
    """
    given = values if isinstance(values, dict) else {}
    for option in options:
        for name, hint in _type_hints(option).items():
            if get_origin(hint) is Literal and get_args(hint) == (given.get(name),):
                return option
    raise ValueError(
        f"{values!r}: are settings of none of {', '.join(option.__name__ for option in options)}"
    )


def _without_none(hint: Any) -> list[Any]:
    return [option for option in get_args(hint) if option is not type(None)]
