"""Tokenization as a part of a run: a large corpus in parts, each a task of its own, put together at the end.

The result and its key are those of the one stage; `stages.tokenization.parts` says when there are parts.
"""

import logging
import os
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.utilities.annotations import unmapped

from flows.tasks.engines import check_engine, is_apart, part_runner
from flows.tasks.progress import stage_progress
from flows.tasks.progress_artifact import progress_artifact
from flows.tasks.stage_task import StageRunner, stored_task
from schemas.errors import SpecError
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import CorpusManifest, HashFraction, TokenizedCorpus, TokenizeSpec
from schemas.tokenize_parts import CorpusPart, PartSpec, TokenizedPart, TokenizedParts, TokenizerModel
from stages.execution.runner import is_made, run_stage
from stages.processes.stopping import stopping
from stages.store.store import open_store
from stages.tokenization.fast_encode import default_threads
from stages.tokenization.parts import corpus_parts, why_whole
from stages.tokenization.reading import bytes_to_read
from stages.tokenization.training_text import training_text

log = logging.getLogger(__name__)

_PART = "tokenize_part"


@dataclass(frozen=True)
class MadePart:
    """What the task of a part gives: the part, and the seconds that it took when it was made."""

    part: TokenizedPart
    seconds: float


def tokenize(run: StageRunner, spec: TokenizeSpec, manifest: CorpusManifest) -> TokenizedCorpus:
    """The tokenized corpus, in parts where it has several, else by the one stage.

    A stage that is asked for again is computed whole, so that its result is compared with that of the parts.
    Raises SpecError for an engine that is not installed or cannot be reached, and what the stage raises.
    """
    stage = "tokenize_corpus"
    together, began = None, time.perf_counter()
    check_engine(run.options)
    parts = [] if stage in run.again else corpus_parts(spec, manifest)
    if is_apart(run.options) and not parts:
        why = why_whole(spec) or "it is small, or asked for again"
        log.info("%s: the corpus is tokenized whole on this machine: %s", stage, why)
    if parts and not is_made(run.store, stage, spec, {"manifest": manifest}):
        together = _parts_of(run, spec, manifest, parts)
    options = run.options.derive(parts=together)
    result: TokenizedCorpus = replace(run, options=options)(stage, spec, manifest=manifest)
    if together is not None:
        run.outcomes[-1] = replace(run.outcomes[-1], seconds=time.perf_counter() - began)
    return result


def _parts_of(
    run: StageRunner, spec: TokenizeSpec, manifest: CorpusManifest, parts: Sequence[CorpusPart]
) -> TokenizedParts | None:
    """The tokenizer and all parts; None where there is no text for a tokenizer, which the stage explains."""
    text = training_text(spec, manifest, run.store.hashes)
    if text is None:
        return None
    log.info("tokenize_corpus: %d parts by %s", len(parts), run.options.engine)
    steps = replace(run, outcomes=[])  # what a run reports is its stages
    tokenizer = steps("make_tokenizer", spec.tokenizer.derive(model_path=None), text=text)
    made = _tokenize_parts(run, spec, parts, tokenizer)
    seconds = steps.outcomes[0].record.provenance.seconds
    seconds += sum(item.seconds for item in made) / _at_once(run.options, parts)
    return TokenizedParts(tokenizer=tokenizer, parts=tuple(item.part for item in made), seconds=seconds)


def _tokenize_parts(
    run: StageRunner, spec: TokenizeSpec, parts: Sequence[CorpusPart], tokenizer: TokenizerModel
) -> list[MadePart]:
    """Every part in order, each a task on the engine of the options. The first error ends the others."""
    options, at_once = run.options, _at_once(run.options, parts)
    threads = _threads(options) // at_once if options.engine == "threads" else options.encode_threads
    assert isinstance(spec.split, HashFraction)
    part_spec = PartSpec(corpus=spec.corpus, split=spec.split, keep_val_text=spec.compressor_baselines)
    progress = _Progress(parts)
    token = _progress.set(progress)
    try:
        with part_runner(options, at_once) as runner:
            futures = runner.map(
                stored_task(_run_part, _PART, f"{_PART}-{{number}}-{run.label}", options),
                {
                    "number": range(1, len(parts) + 1),
                    "part": parts,
                    "spec": unmapped(part_spec),
                    "tokenizer": unmapped(tokenizer),
                    "options": unmapped(options.derive(encode_threads=max(1, threads))),
                },
            )
            made = []
            for number, future in enumerate(futures, start=1):
                made.append(future.result())
                progress.end(number)
            return made
    finally:
        _progress.reset(token)


def _run_part(
    number: int, part: CorpusPart, spec: PartSpec, tokenizer: TokenizerModel, options: RunOptions
) -> State[MadePart]:
    progress = _progress.get()
    if is_apart(options):
        options = _options_here(options, tokenizer)

    def on_progress(done: float, total: float, unit: str) -> None:
        stopping.get().check()
        if progress is not None:
            progress.report(number, done)

    stopping.get().check()
    inputs = {"part": part, "tokenizer": tokenizer}
    outcome = run_stage(open_store(options), _PART, spec, inputs, options, on_progress)
    provenance = outcome.record.provenance
    made = MadePart(outcome.record.result, provenance.seconds)
    if outcome.cached:
        return Completed(name="Cached", message=f"found in the store: {provenance.key[:12]}", data=made)
    return Completed(
        message=f"made in {outcome.seconds:.1f} s on {provenance.host}: {provenance.key[:12]}", data=made
    )


def _options_here(options: RunOptions, tokenizer: TokenizerModel) -> RunOptions:
    """The options as a worker of the cluster needs them: with a remote store, its FAIRWAY_STORE is its cache.

    Raises SpecError on a worker that sees neither a remote store nor the run's own.
    """
    if options.remote:
        return options.derive(store=os.environ.get("FAIRWAY_STORE", options.store))
    if not (Path(options.store) / tokenizer.model.path).exists():
        raise SpecError(
            f"engine = {options.engine}: a worker does not see the store {options.store}. Name a store that "
            "machines share by --remote, or a folder that all of them see by --store"
        )
    return options


def _threads(options: RunOptions) -> int:
    return options.encode_threads or default_threads()


def _at_once(options: RunOptions, parts: Sequence[Any]) -> int:
    """Parts that this machine works on at a time."""
    return min(_threads(options), len(parts)) if options.engine == "threads" else 1


class _Progress:
    """The bytes read of all parts, for the terminal and the server; any thread may report."""

    def __init__(self, parts: Sequence[CorpusPart]) -> None:
        self._sizes = [bytes_to_read(part) for part in parts]
        self._done = [0.0] * len(parts)
        self._listener, self._show, self._lock = stage_progress.get(), progress_artifact(_PART), Lock()

    def report(self, number: int, done: float) -> None:
        """Part `number`, from 1, has read so many bytes."""
        with self._lock:
            self._done[number - 1] = done
            now, total = sum(self._done), sum(self._sizes)
            self._show(now, total, "bytes")
            if self._listener is not None:
                self._listener(_PART, now, total, "bytes")

    def end(self, number: int) -> None:
        self.report(number, self._sizes[number - 1])


_progress: ContextVar[_Progress | None] = ContextVar("parts_progress", default=None)
"""Seen by threads, which copy the context; not by the workers of a cluster."""
