"""Run one stage against the store: make its key, serve it if it is there, otherwise make and publish it.

run_stage(store, "quantize", spec, {"merged": merged}, runtime) -> StageOutcome(record, cached, seconds)

With `again` a stored stage is computed once more, and its result compared with the stored one.
"""

import importlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import ValidationError

from schemas.base import Schema, fingerprint, invalid_field
from schemas.errors import SpecError, StageError, clear_storage_errors
from schemas.files import Provenance, StageRecord
from schemas.runtime import Progress, RunOptions
from schemas.stages import KNOWN_STAGES, Stage
from stages.store.keys import stage_key
from stages.store.machine import precision_note, resolve_precision, this_machine
from stages.store.source import code_digest, fairway_version, library_versions
from stages.store.store import Store
from stages.store.workspace import Workspace, no_progress

log = logging.getLogger(__name__)

# Libraries that would keep files in the home or the temporary folder: nothing is written outside the store.
_CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}


@dataclass(frozen=True)
class StageOutcome:
    """A finished stage: its record, whether the store had it, and how long that took here.

    `repeated`: the store had it, and it was computed again with the same result.
    """

    record: StageRecord
    cached: bool
    seconds: float
    repeated: bool = False


def stage_function(stage: Stage) -> Callable[..., Any]:
    return getattr(importlib.import_module(stage.module), stage.name)


def run_stage(
    store: Store,
    stage_name: str,
    spec: Any,
    inputs: dict[str, Schema],
    runtime: RunOptions,
    on_progress: Progress = no_progress,
    again: bool = False,
) -> StageOutcome:
    """The stage's record, from the store when every file of it is sound, otherwise made now.

    A precision of `auto` in `spec` is resolved for this machine first. With `again` the stage is computed
    even if the store has it. An equal result leaves the stored record as it is, so that the keys of later
    stages stay; another one raises StageError and is kept apart from the store's results.
    Raises SpecError or StageError (permanent), StorageError for a disk that is full or may not be written, or
    whatever transient error ended the stage; an interrupted resumable
    stage goes on from its last checkpoint when called again.
    """
    stage = KNOWN_STAGES[stage_name]
    _check_types(stage, spec, inputs)
    spec = resolve_precision(spec)
    key = stage_key(stage, spec, inputs)
    for variable, folder in _CACHES.items():
        os.environ.setdefault(variable, str(store.root / "cache" / folder))
    started = time.perf_counter()
    if (record := store.find(stage, key)) is None or again:
        compute = partial(_compute, store, stage, key, spec, inputs, runtime, on_progress)
        with store.lock(stage, key), clear_storage_errors(store.root):
            if (record := store.find(stage, key)) is None:
                record = store.publish(stage, key, compute(store.keeping_checkpoints(stage, key)))
                return StageOutcome(record, cached=False, seconds=time.perf_counter() - started)
            if again:
                # Checkpoints stay here: other machines have the result and need none.
                _require_equal(store, stage, record, compute(nullcontext()))
                seconds = time.perf_counter() - started
                log.info("%s: computed again in %.1f s, the result is the stored one", stage.name, seconds)
                return StageOutcome(record, cached=False, seconds=seconds, repeated=True)
    log.info("%s: found in the store (%s)", stage.name, key[:12])
    return StageOutcome(record, cached=True, seconds=time.perf_counter() - started)


def is_made(store: Store, stage_name: str, spec: Any, inputs: dict[str, Schema]) -> bool:
    """Whether the store has a sound record of the stage, so that running it would compute nothing."""
    stage = KNOWN_STAGES[stage_name]
    return store.find(stage, stage_key(stage, resolve_precision(spec), inputs)) is not None


def _require_equal(store: Store, stage: Stage, stored: StageRecord, made: StageRecord) -> None:
    """Remove the files of `made` if its result is that of `stored`. Otherwise keep them apart and raise
    StageError.
    """
    key = stored.provenance.key
    before, after = stored.result.identity(), made.result.identity()
    if before == after:
        shutil.rmtree(store.work_folder(stage, key))
        return
    differing = ", ".join(name for name in before if before[name] != after.get(name))
    raise StageError(
        f"{stage.name}: computed again, it gave another result than the stored one ({differing}). The stored "
        f"one stays, because runs refer to its files; the other lies in {store.set_aside(stage, key, made)}. "
        "Figures of a GPU may differ between two computations; on a CPU check the machine's memory"
    )


def _compute(
    store: Store,
    stage: Stage,
    key: str,
    spec: Any,
    inputs: dict[str, Schema],
    runtime: RunOptions,
    on_progress: Progress,
    around: AbstractContextManager[None],
) -> StageRecord:
    """The record of the stage, whose files lie in the work folder of `key`. `around` holds while it works."""
    out_dir = store.work_folder(stage, key)
    if out_dir.exists() and not stage.resumable:
        shutil.rmtree(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    work = Workspace(
        store.root,
        out_dir,
        store.relative_folder(stage, key),
        runtime,
        store.hashes,
        on_progress,
        store.fetch,
    )
    compute = stage.compute(spec)
    if compute is not None and stage.name in ("train", "merge", "evaluate"):
        log.info("%s: precision %s", stage.name, precision_note(compute))
    created_at, started = datetime.now(UTC), time.perf_counter()
    try:
        with around:
            result = stage_function(stage)(spec, **stage.arguments(inputs), work=work)
    except ValidationError as error:
        raise StageError(f"{stage.name}: what came out cannot be recorded: {invalid_field(error)}") from error
    if not isinstance(result, stage.result_type):
        raise TypeError(
            f"{stage.name} returned {type(result).__name__} instead of {stage.result_type.__name__}"
        )
    provenance = Provenance(
        stage=stage.name,
        key=key,
        created_at=created_at.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started + (runtime.parts.seconds if runtime.parts else 0.0),
        host=platform.node(),
        fairway_version=fairway_version(),
        code_sha256=code_digest(stage.code_roots, stage.ships_source),
        libraries=library_versions(stage.code_roots, stage.libraries),
        machine=this_machine(compute),
        inputs={name: fingerprint(value) for name, value in inputs.items()},
    )
    return stage.record_type()(provenance=provenance, spec=spec, result=result)


def _check_types(stage: Stage, spec: Any, inputs: dict[str, Schema]) -> None:
    expected = {"spec": stage.spec_type, **stage.inputs}
    given = {"spec": spec, **inputs}
    if set(expected) != set(given):
        raise SpecError(
            f"{stage.name} takes {', '.join(stage.inputs)}; given: {', '.join(inputs) or 'nothing'}"
        )
    for name, kind in expected.items():
        if not isinstance(given[name], kind):
            raise SpecError(
                f"{stage.name}: {name} must be a {kind.__name__}, not {type(given[name]).__name__}"
            )
