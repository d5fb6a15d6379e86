"""Load a finished run, or a folder with a package, and let the model write.

    from stages.generate import load
    print(load("last").generate("My fellow citizens")[0].text)

`fairway sample` does the same in a terminal.
"""

import os
import time
from pathlib import Path

import torch

from schemas.errors import SpecError
from schemas.package import BLOB_NAME
from schemas.pipeline import PipelineReport
from schemas.printable import one_line
from schemas.sample import Sample, SamplingSettings, Weights
from schemas.submission import INFO_NAME
from stages.core.blob.packing import BlobError
from stages.core.program import load_packed_model
from stages.corpora.sources import ready_made_tokenizer
from stages.sampling.generator import Generator
from stages.sampling.of_run import model_of_run, tokenizer_of_run
from stages.store.runs import LAST, find_run
from stages.store.store import Store, open_existing_store
from stages.submission.untrusted import UnreadableError, read_bytes, read_json_object

BLOB_LIMIT_BYTES = 64 * 2**20
DEFAULT_CONTEXT_TOKENS, MAX_CONTEXT_TOKENS = 1_024, 4_096


def load(
    source: str | Path = LAST,
    *,
    store: str | Path | None = None,
    remote: str | None = None,
    weights: Weights = "packed",
    tokenizer: str | Path | None = None,
) -> Generator:
    """The model of a run, or of a folder that holds `model.fwz`, on the CPU.

    `source` is a run's name or id, the beginning of either, `last`, or a path. `store` is by default the one
    that FAIRWAY_STORE names, else `.fairway`; `remote`, the address of a store that machines share, the one
    that FAIRWAY_REMOTE names, else none (an empty one: none). A folder needs the SentencePiece model as
    `tokenizer`; nothing of it is run. Raises SpecError for what cannot be used.
    """
    if is_folder(source):
        return _of_folder(Path(source).expanduser(), weights, tokenizer)
    if tokenizer is not None:
        raise SpecError(f"--tokenizer = {tokenizer}: a run has its own. Leave it out, or name a folder")
    folder = store or os.environ.get("FAIRWAY_STORE", ".fairway")
    opened = open_existing_store(folder, os.environ.get("FAIRWAY_REMOTE") if remote is None else remote)
    return _of_run(opened, find_run(opened.runs_root(), str(source)), weights)


def is_folder(source: str | Path) -> bool:
    """Whether a path is meant, and no run: by its type, its form, or a model that lies there."""
    return isinstance(source, Path) or os.sep in source or (Path(source) / BLOB_NAME).is_file()


def sample(generator: Generator, weights: Weights, prompt: str, settings: SamplingSettings) -> Sample:
    """What the model writes, as a record."""
    began = time.perf_counter()
    written = generator.continue_text(prompt, settings)
    return Sample(
        source=generator.name,
        weights=weights,
        prompt=prompt,
        settings=settings,
        context_tokens=generator.context_tokens,
        continuations=tuple(written),
        seconds=time.perf_counter() - began,
    )


def _of_run(store: Store, report: PipelineReport, weights: Weights) -> Generator:
    model = model_of_run(store, report, weights)
    pieces, _ = tokenizer_of_run(store, report)
    return Generator(model, pieces, report.spec.train.data.sequence_length, report.name)


def _of_folder(folder: Path, weights: Weights, tokenizer: str | Path | None) -> Generator:
    shown = one_line(str(folder))
    if weights != "packed":
        raise SpecError(f"--weights = {weights}: the folder {shown} has only packed ones. Name a run instead")
    if not folder.is_dir():
        raise SpecError(f"FOLDER = {shown}: no such folder")
    if tokenizer is None:
        raise SpecError(
            f"--tokenizer: the folder {shown} has none of its own. Give the SentencePiece model that made "
            "the model's training text into tokens"
        )
    pieces = ready_made_tokenizer(Path(tokenizer).expanduser(), "--tokenizer")
    path = folder / BLOB_NAME
    try:
        read_bytes(path, BLOB_LIMIT_BYTES)  # refuses a link, a pipe, and what is too large
        model = load_packed_model(path, torch.device("cpu"))
    except (UnreadableError, BlobError) as error:
        raise SpecError(one_line(f"FOLDER = {folder}: {BLOB_NAME}: {error}")) from error
    return Generator(model, pieces, _context_of(folder), shown)


def _context_of(folder: Path) -> int:
    """The tokens that a prediction saw when the folder was scored, as its submission.json says: those of the
    attention window, else those of a window.
    """
    try:
        told = read_json_object(folder / INFO_NAME)
    except UnreadableError:
        return DEFAULT_CONTEXT_TOKENS  # a package without it is no worse
    for name in ("eval_attention_window", "eval_sequence_length"):
        tokens = told.get(name)
        if type(tokens) is int and 0 < tokens <= MAX_CONTEXT_TOKENS:
            return tokens
    return DEFAULT_CONTEXT_TOKENS
