"""Content keys: the hash of everything that can change a stage's result."""

import hashlib
import json
from typing import Any

from schemas.base import Schema, fingerprint
from schemas.errors import SpecError
from schemas.stages import Stage
from stages.store.machine import machine_kind, resolve_precision
from stages.store.source import code_digest, library_versions


def stage_key(stage: Stage, spec: Any, inputs: dict[str, Schema]) -> str:
    """sha256 (hex) of the stage's name, its code and libraries, its spec, the content of its inputs, and the
    kind of machine if it computes floating-point numbers.

    Raises SpecError for a spec whose precision is not resolved.
    """
    if resolve_precision(spec) is not spec:
        raise SpecError(
            f"{stage.name}: precision = auto: resolve it first (stages.store.machine.resolve_precision); it "
            "means something else on each machine"
        )
    body = {
        "stage": stage.name,
        "code": code_digest(stage.code_roots, stage.ships_source),
        "libraries": library_versions(stage.code_roots, stage.libraries),
        "machine": machine_kind(compute) if (compute := stage.compute(spec)) else None,
        "spec": fingerprint(spec.keyed() if isinstance(spec, Schema) else spec),
        "inputs": {name: fingerprint(value) for name, value in inputs.items()},
        "reads": {
            f"{name}.{read}": fingerprint(getattr(inputs[name], read))
            for name, reads in stage.reads.items()
            for read in reads
        },
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
