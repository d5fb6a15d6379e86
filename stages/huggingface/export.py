"""Export of a run's model as a folder for Hugging Face Transformers (`fairway export-hf RUN`).

    from stages.huggingface.export import export_hf
    export_hf(open_store_at(".fairway"), "last", "packed", Path("my-model"))

Transformers reads the folder with `trust_remote_code=True`; neither it nor Fairway is needed for the other.
The code in the folder is the source of `remote_code` with the model of `stages.core` bundled into it.
"""

import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from schemas.errors import SpecError, StageError
from schemas.files import FileRef
from schemas.huggingface import (
    CONFIG_NAME,
    TOKENIZER_NAME,
    TRANSFORMERS_PACKAGES,
    WEIGHTS_NAME,
    HuggingFaceFolder,
)
from schemas.pipeline import PipelineReport
from schemas.sample import Weights
from schemas.submission import README_NAME
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.shards import BOS_ID
from stages.huggingface.card import model_card
from stages.huggingface.check import check_folder, transformers_python
from stages.packaging.bundle import bundle, imported_packages
from stages.sampling.of_run import model_of_run, tokenizer_of_run
from stages.store.runs import find_run, require_files
from stages.store.store import Store
from stages.store.whole_folder import refuse_used, whole_folder

log = logging.getLogger(__name__)

CHECKED_ROWS = 4
"""Rows of the validation split on which `check` compares."""

CODE_PACKAGE = "stages.huggingface.remote_code"
_CONFIGURATION, _MODELING, _TOKENIZATION = (
    "configuration_fairway",
    "modeling_fairway",
    "tokenization_fairway",
)
# numpy is a dependency of Transformers itself; "." are the modules beside one another.
_ALLOWED_IMPORTS = sys.stdlib_module_names | {*TRANSFORMERS_PACKAGES, "numpy", "."}


def export_hf(
    store: Store, run: str, weights: Weights, out: Path | None = None, check: bool = False
) -> HuggingFaceFolder:
    """Write the model of the run as a folder, which appears whole or not at all.

    `run` is its name or id, the beginning of either, or `last`; `out` is by default `huggingface/`, the run's
    name and the kind of weights, in the store. All weights are stored as float32, those of the package
    dequantized. With `check` Transformers loads the folder before it gets its name. Raises SpecError for an
    unknown run, one whose files are gone, and an `out` in use; StageError as `check_folder` does.
    """
    python = transformers_python() if check else None
    report = find_run(store.runs_root(), run)
    out = out.expanduser().resolve() if out else store.root / "huggingface" / f"{report.name}-{weights}"
    refuse_used(out)
    model = model_of_run(store, report, weights)
    pieces, tokenizer = tokenizer_of_run(store, report)
    context = report.spec.train.data.sequence_length
    with whole_folder(out) as folder:
        write_model(folder, model, pieces, tokenizer, context)
        (folder / README_NAME).write_text(model_card(store, report, weights), encoding="utf-8")
        checked = None
        if python is not None:
            ids, texts = _validation_text(store, report, pieces, context)
            checked = check_folder(folder, model, pieces, ids, texts, python)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    log.info("%s: %s bytes in %d files", out, f"{sum(files.values()):,}", len(files))
    return HuggingFaceFolder(
        source=report.name,
        weights=weights,
        folder=str(out),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        val_bpb=report.val_bpb_quantized if weights == "packed" else report.val_bpb_merged,
        files=files,
        check=checked,
    )


def _validation_text(
    store: Store, report: PipelineReport, pieces: SentencePieceProcessor, context_tokens: int
) -> tuple[Tensor, list[str]]:
    """The first rows of the validation split, ids (B, T), and each as text.

    Raises SpecError if the shards are missing or damaged.
    """
    shards = report.tokenized.val_shards
    require_files(store, report, shards)
    stream = TokenStream([store.fetch(ref) if isinstance(ref, FileRef) else Path(ref.path) for ref in shards])
    length = min(context_tokens, len(stream))
    num_rows = min(CHECKED_ROWS, len(stream) // length)
    rows = stream.read(0, num_rows * length).astype("int64").reshape(num_rows, length)
    return torch.from_numpy(rows), [pieces.decode(row) for row in rows.tolist()]


def write_model(
    folder: Path, model: GPT, pieces: SentencePieceProcessor, tokenizer: Path, context_tokens: int
) -> None:
    """Write weights, settings, tokenizer and code into `folder`: all that Transformers reads.

    `pieces` is the SentencePiece model at `tokenizer`. Raises SpecError for a tokenizer with more pieces than
    the model knows, OSError where the disk does not take a file.
    """
    known = model.settings.vocab_size
    if pieces.vocab_size() > known:
        raise SpecError(f"tokenizer: has {pieces.vocab_size():,} pieces, the model knows {known:,}")
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    # save_file has an error of its own for a full disk.
    (folder / WEIGHTS_NAME).write_bytes(save(tensors, metadata={"format": "pt"}))
    shutil.copyfile(tokenizer, folder / TOKENIZER_NAME)
    special = _special_ids(pieces)
    _write_json(folder / CONFIG_NAME, _config(model, context_tokens) | special)
    _write_json(folder / "generation_config.json", _generation_config(model, pieces) | special)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(pieces, special, context_tokens))
    for name, source in remote_code().items():
        (folder / name).write_text(source, encoding="utf-8")


def remote_code() -> dict[str, str]:
    """Source of each module that Transformers loads, by its file name.

    Raises StageError if one imports what a reader of the folder may not have.
    """
    sources = {
        f"{name}.py": bundle(f"{CODE_PACKAGE}.{name}", keep_comments=True)[0]
        for name in (_CONFIGURATION, _MODELING, _TOKENIZATION)
    }
    for name, source in sources.items():
        if others := sorted(imported_packages(source) - _ALLOWED_IMPORTS):
            raise StageError(
                f"{name} would import {', '.join(others)}; only the standard library and "
                f"{', '.join(TRANSFORMERS_PACKAGES)} may be needed"
            )
    return sources


def _config(model: GPT, context_tokens: int) -> dict[str, Any]:
    return {
        "architectures": ["FairwayForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{_CONFIGURATION}.FairwayConfig",
            "AutoModelForCausalLM": f"{_MODELING}.FairwayForCausalLM",
        },
        "model_type": "fairway",
        "dtype": "float32",
        # Transformers would tie by its own names; here the model itself reads one table twice.
        "tie_word_embeddings": False,
        "use_cache": False,
        "context_tokens": context_tokens,
        **dataclasses.asdict(model.settings),
    }


def _generation_config(model: GPT, pieces: SentencePieceProcessor) -> dict[str, Any]:
    """Without ids for which the tokenizer has no text."""
    unknown = list(range(pieces.vocab_size(), model.settings.vocab_size))
    return {"use_cache": False} | ({"suppress_tokens": unknown} if unknown else {})


def _special_ids(pieces: SentencePieceProcessor) -> dict[str, int]:
    """The token that begins a document ends the one before it, so it is BOS and EOS."""
    pad = pieces.pad_id()
    return {"bos_token_id": BOS_ID, "eos_token_id": BOS_ID, "pad_token_id": pad if pad >= 0 else BOS_ID}


def _tokenizer_config(
    pieces: SentencePieceProcessor, special: dict[str, int], context_tokens: int
) -> dict[str, Any]:
    tokens = {name.removesuffix("_id"): pieces.id_to_piece(index) for name, index in special.items()}
    return {
        "tokenizer_class": "FairwayTokenizer",
        "auto_map": {"AutoTokenizer": [f"{_TOKENIZATION}.FairwayTokenizer", None]},
        **tokens,
        "unk_token": pieces.id_to_piece(pieces.unk_id()),
        "model_max_length": context_tokens,
        "padding_side": "left",
        # A text that spells a special token has the ids of its letters, as in training.
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
