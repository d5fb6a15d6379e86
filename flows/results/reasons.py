"""Why two results of a stage have different keys: every part of a key that differs.

Imports neither Prefect nor torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.base import Schema, fingerprint, identity
from schemas.files import StageRecord
from schemas.stages import Stage
from stages.store.machine import machine_kind
from stages.store.source import code_digest, library_versions

ABSENT = "–"
_NAMED_SETTINGS = 3


@dataclass(frozen=True)
class KeyParts:
    """All that a key is made of. `machine`: None where the kind of machine does not count. `figures`: what a
    stage reads of its inputs beside what identifies them, as fingerprints; empty where it is not known.
    """

    spec: Any
    inputs: Mapping[str, str]
    code: str
    libraries: Mapping[str, str]
    machine: str | None
    figures: Mapping[str, str]


def parts_of_record(stage: Stage, record: StageRecord, figures: Mapping[str, str] | None = None) -> KeyParts:
    """The parts of the key of an earlier result."""
    origin = record.provenance
    counts = stage.compute(record.spec) is not None
    kind = origin.machine.kind if counts else None
    return KeyParts(record.spec, origin.inputs, origin.code_sha256, origin.libraries, kind, figures or {})


def parts_now(stage: Stage, spec: Any, inputs: Mapping[str, Schema]) -> KeyParts:
    """The parts of the key that the stage has here and now. `spec` with its precision resolved."""
    compute = stage.compute(spec)
    return KeyParts(
        spec,
        {name: fingerprint(value) for name, value in inputs.items()},
        code_digest(stage.code_roots, stage.ships_source),
        library_versions(stage.code_roots, stage.libraries),
        machine_kind(compute) if compute else None,
        read_figures(stage, inputs),
    )


def read_figures(stage: Stage, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of the figures of its inputs that the stage tells, by `input.figure`."""
    return {
        f"{name}.{read}": fingerprint(getattr(inputs[name], read))
        for name, reads in stage.reads.items()
        for read in reads
    }


def reasons(before: KeyParts, after: KeyParts) -> list[str]:
    """Each part of a key that differs, in words; empty where none does."""
    found = []
    if settings := differing(_keyed(before.spec), _keyed(after.spec)):
        more = len(settings) - _NAMED_SETTINGS
        named = ", ".join(settings[:_NAMED_SETTINGS]) + (f" and {more} more" if more > 0 else "")
        found.append(f"settings ({named})")
    if inputs := _unequal(before.inputs, after.inputs):
        found.append(f"inputs ({', '.join(inputs)})")
    if before.code != after.code:
        found.append("code")
    if libraries := _unequal(before.libraries, after.libraries):
        versions = (
            f"{name} {before.libraries.get(name, ABSENT)} → {after.libraries.get(name, ABSENT)}"
            for name in libraries
        )
        found.append(f"libraries ({', '.join(versions)})")
    if before.machine is not None and before.machine != after.machine:
        found.append(f"machine ({before.machine} → {after.machine})")
    told = before.figures and after.figures and not found
    if told and (figures := _unequal(before.figures, after.figures)):
        found.append(f"figures of inputs ({', '.join(figures)})")
    return found


def differing(one: Any, other: Any, name: str = "") -> list[str]:
    """Dotted names of the leaves in which two values of plain JSON types differ; a list is one leaf."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return [
            leaf
            for key in dict.fromkeys((*one, *other))
            for leaf in differing(one.get(key), other.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if one == other else [name]


def _keyed(spec: Any) -> Any:
    return identity(spec.keyed() if isinstance(spec, Schema) else spec)


def _unequal(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
