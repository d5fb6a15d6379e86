"""Frozen pydantic base, and the identity that cache keys are made of.

`fingerprint(value)` is stable across processes and field order. A file counts by its sha256 alone (not by
where it lies), and a field marked `Volatile` (timings, hosts, logs) does not count, so equal bytes give equal
keys.
"""

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

SCHEMA_VERSION = 4

T = TypeVar("T")


def known_version(version: int) -> int:
    """`version`, which must be the one that this Fairway reads. Raises ValueError."""
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"record has schema version {version}, this Fairway reads {SCHEMA_VERSION}: run the stage again"
        )
    return version


SchemaVersion = Annotated[int, AfterValidator(known_version)]


class _VolatileMarker:
    """Marks a field that describes a run but does not identify its result."""

    def __repr__(self) -> str:
        return "volatile"


VOLATILE = _VolatileMarker()
Volatile = Annotated[T, VOLATILE]


class Schema(BaseModel):
    """Immutable. Refuses unknown fields, and NaN and infinities, which JSON cannot hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def derive(self, **changes: Any) -> Self:
        """A copy with `changes`, validated again (`model_copy` is not)."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(values | changes)

    def keyed(self) -> Self:
        """What of a spec belongs in the key of its stage: all, but for names of what is an input with its
        content.
        """
        return self

    def identity(self) -> Any:
        """What this value is, as plain JSON types, without what merely describes how it came about."""
        return {
            name: identity(getattr(self, name))
            for name, field in sorted(type(self).model_fields.items())
            if VOLATILE not in field.metadata
        }


_OUR_WORDS = (
    ("Value error, ", ""),
    ("Input should be greater than or equal to ", "must be at least "),
    ("Input should be greater than ", "must be above "),
    ("Input should be less than or equal to ", "must be at most "),
    ("Input should be less than ", "must be below "),
    ("Input should ", "must "),
    ("String should ", "must "),
    ("Tuple should ", "must "),
)


def in_our_words(finding: ErrorDetails) -> str:
    """What pydantic says of a field, as `Settings` would say it: `must be at least 1`."""
    message = finding["msg"]
    for theirs, ours in _OUR_WORDS:
        if message.startswith(theirs):
            return ours + message.removeprefix(theirs)
    return message


def invalid_field(error: ValidationError) -> str:
    """The first field that did not validate, in words: `Score.bpb = nan: must be a finite number`."""
    first = error.errors(include_url=False)[0]
    place = ".".join([error.title, *map(str, first["loc"])])
    return f"{place} = {reprlib.repr(first['input'])}: {in_our_words(first)}"


def identity(value: Any) -> Any:
    """`value` as JSON types. Raises TypeError for a type whose text is not known to be stable."""
    if isinstance(value, Schema):
        return value.identity()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: identity(getattr(value, f.name)) for f in dataclasses.fields(value) if _counts(f, value)
        }
    if isinstance(value, Mapping):
        return {
            str(key): identity(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))
        }
    if isinstance(value, (list, tuple)):
        return [identity(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((identity(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Enum):
        return identity(value.value)
    if isinstance(value, PurePath):
        return value.as_posix()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{type(value).__name__} has no stable identity; give it one in schemas.base.identity")


def _counts(field: dataclasses.Field, value: Any) -> bool:
    """Whether a field is part of the identity: not where it was added later and has its default."""
    return not field.metadata.get("later") or getattr(value, field.name) != field.default


def fingerprint(value: Any) -> str:
    """sha256 (hex) of `identity(value)` as canonical JSON."""
    text = json.dumps(identity(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
