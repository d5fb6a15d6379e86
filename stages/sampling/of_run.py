"""The model and the tokenizer of a finished run, as they lie in the store."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor

from schemas.files import FileRef
from schemas.pipeline import PipelineReport
from schemas.sample import Weights
from stages.core.model import GPT
from stages.core.program import load_packed_model
from stages.corpora.sources import ready_made_tokenizer
from stages.store.runs import require_files
from stages.store.store import Store


def model_of_run(store: Store, report: PipelineReport, weights: Weights) -> GPT:
    """The quantized or the merged model, float32 on the CPU.

    Raises SpecError if its file is missing or damaged.
    """
    ref = report.package.blob if weights == "packed" else report.merged.weights
    require_files(store, report, ref)
    if weights == "packed":
        return load_packed_model(store.fetch(ref), torch.device("cpu"))
    model = GPT(report.merged.model)
    model.load_state_dict(load_file(store.fetch(ref)))
    return model


def tokenizer_of_run(store: Store, report: PipelineReport) -> tuple[SentencePieceProcessor, Path]:
    """The SentencePiece model and its path. Raises SpecError if the file is missing, damaged or unfit."""
    source = report.tokenized.tokenizer
    require_files(store, report, source)
    path = store.fetch(source) if isinstance(source, FileRef) else Path(source.path)
    return ready_made_tokenizer(path, "tokenizer"), path
