"""Check of an exported folder: Transformers loads it in a process of its own and must agree with the model.

Shape legend: B rows, T tokens, V vocabulary.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from schemas.errors import SpecError, StageError
from schemas.huggingface import INSTALL_COMMAND, LARGEST_DIFFERENCE, TRANSFORMERS_PACKAGES, FolderCheck
from stages.core.model import GPT
from stages.core.shards import BOS_ID

READER = Path(__file__).with_name("reader.py")
PYTHON_VARIABLE = "FAIRWAY_TRANSFORMERS_PYTHON"
_SECONDS = 600
_ERROR_LINES = 12


def transformers_python() -> str:
    """The interpreter that has Transformers: FAIRWAY_TRANSFORMERS_PYTHON, else this one.

    Raises SpecError with the install command if it lacks a package that the check needs.
    """
    if python := os.environ.get(PYTHON_VARIABLE):
        if shutil.which(python) is None:
            raise SpecError(f"{PYTHON_VARIABLE} = {python}: is no program. Name a Python interpreter")
        return python
    if missing := [name for name in TRANSFORMERS_PACKAGES if find_spec(name) is None]:
        raise SpecError(
            f"--check: {', '.join(missing)} is not installed. Install it: {INSTALL_COMMAND}. Or name an "
            f"interpreter that has it in {PYTHON_VARIABLE}"
        )
    return sys.executable


def check_folder(
    folder: Path,
    model: GPT,
    pieces: SentencePieceProcessor,
    ids: Tensor,
    texts: Sequence[str],
    python: str,
) -> FolderCheck:
    """Compare the folder with `model` on `ids` (B, T) and with `pieces` on `texts`.

    `python` is the interpreter that has Transformers. Raises StageError if logits differ by more than 1e-5,
    if ids of a text differ, if generated tokens are not the likeliest ones, and if Transformers cannot load
    the folder.
    """
    with tempfile.TemporaryDirectory(prefix="fairway-hf-") as work:
        answer, theirs = _read(folder, Path(work), ids, texts, python)
    with torch.inference_mode():
        ours = model.logits(model.hidden(ids))
    difference = float((ours - theirs).abs().max())
    if not difference <= LARGEST_DIFFERENCE:  # also refuses NaN
        raise StageError(
            f"{folder}: a logit differs by {difference:.3g} from the run's model; at most "
            f"{LARGEST_DIFFERENCE:g} is allowed"
        )
    for text, found in zip(texts, answer["ids"], strict=True):
        if found != [BOS_ID, *pieces.encode(text)]:
            raise StageError(f"{folder}: other ids than SentencePiece's for the text {text[:60]!r}")
    _check_written(folder, answer["written"], ids[:1, : answer["start"]], model, pieces.vocab_size())
    return FolderCheck(
        transformers=answer["transformers"], num_tokens=ids.numel(), largest_difference=difference
    )


def _read(
    folder: Path, work: Path, ids: Tensor, texts: Sequence[str], python: str
) -> tuple[dict[str, Any], Tensor]:
    """Answer and logits (B, T, V) of the reader. Raises StageError with its last lines if it fails."""
    save_file({"ids": ids.contiguous()}, work / "asked.safetensors")
    (work / "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
    environment = {
        **os.environ,
        "HF_HOME": str(work / "home"),  # Transformers copies the folder's code there
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        [python, "-P", str(READER), str(folder), str(work)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-_ERROR_LINES:])
        raise StageError(f"{folder}: Transformers cannot read it; its last lines:\n{said}")
    answer = json.loads((work / "answer.json").read_text(encoding="utf-8"))
    return answer, load_file(work / "logits.safetensors")["logits"]


def _check_written(folder: Path, written: list[int], start: Tensor, model: GPT, known: int) -> None:
    """Each token after `start` (1, T) must have the largest logit of the first `known` ids, but for rounding.

    Raises StageError.
    """
    text = start
    for token in written:
        with torch.inference_mode():
            logits = model.logits(model.hidden(text, num_last=1))[0, -1, :known]
        if float(logits.max() - logits[token]) > LARGEST_DIFFERENCE:
            raise StageError(
                f"{folder}: generate() wrote token {token}, the likeliest is {int(logits.argmax())}"
            )
        text = torch.cat((text, torch.tensor([[token]])), dim=1)
