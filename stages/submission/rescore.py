"""Rescoring: score a submission folder's blob again in fresh processes (`fairway rescore FOLDER --shards …`).

By default no code of the folder runs: its blob is a model in our format, and a script bundled here scores it.
"""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError, StageError
from schemas.evaluate import scored_with
from schemas.package import BLOB_NAME, SCRIPT_NAME, PackageOptions
from schemas.printable import one_line, printable
from schemas.runtime import Progress
from schemas.scoring_settings import ScoringSettings
from schemas.submission import INFO_NAME, Rescored
from stages.core.blob.packing import BlobError
from stages.core.program import load_packed_model
from stages.core.shards import ShardError, open_shard
from stages.corpora.sources import ready_made_tokenizer
from stages.packaging.script import program
from stages.processes.launch import ChildFailedError
from stages.scoring.isolated import score_isolated
from stages.store.machine import precision_note
from stages.store.workspace import no_progress
from stages.submission.untrusted import UnreadableError, read_bytes, read_json_object

BLOB_LIMIT_BYTES = 64 * 2**20


def scoring_of(
    folder: Path,
    sequence_length: int | None,
    stride: int | None,
    attention_window: int | None,
    batch_tokens: int | None,
) -> ScoringSettings:
    """The scoring windows: as given, else from the folder's submission.json, else our defaults. A stride or
    an attention window takes the place of both.

    Raises SpecError for impossible windows.
    """
    told = _info(folder)
    default = ScoringSettings()

    def pick(given: int | None, name: str, otherwise: int) -> int:
        said = told.get(name)
        return given if given is not None else said if type(said) is int else otherwise

    overlap = pick(stride, "eval_stride", default.stride), pick(attention_window, "eval_attention_window", 0)
    if stride is not None or attention_window is not None:
        overlap = stride or 0, attention_window or 0
    windows = "documents" if told.get("eval_windows") == "documents" else "stream"
    try:
        return ScoringSettings(
            pick(sequence_length, "eval_sequence_length", default.sequence_length),
            overlap[0],
            pick(batch_tokens, "eval_batch_tokens", default.batch_tokens),
            windows,  # type: ignore[arg-type]
            overlap[1],
        )
    except ValueError as error:
        raise SpecError(f"--sequence-length, --stride, --attention-window: {error}") from error


def rescore(
    folder: Path,
    shards: Sequence[Path],
    tokenizer: Path,
    scoring: ScoringSettings,
    compute: ComputeSettings,
    run_its_script: bool = False,
    progress: Progress = no_progress,
    timeout: float | None = None,
) -> Rescored:
    """Bits per byte of the blob in `folder` on `shards`.

    `run_its_script` runs the folder's train_gpt.py instead of ours: untrusted code, with all that this
    user may do. Raises SpecError for a folder, shard or tokenizer that cannot be used, StageError for a
    script that leaves no scores.
    """
    blob = _blob(folder)
    _check_inputs(shards, tokenizer, any_tokenizer=run_its_script)
    with tempfile.TemporaryDirectory(prefix="fairway-rescore-") as name:
        work = Path(name)
        script = _package(folder, blob, work / "package", run_its_script)
        began = time.perf_counter()
        try:
            scores = score_isolated(script, shards, tokenizer, scoring, compute, work, progress, timeout)
        # ValueError: progress lines that are none
        except (ChildFailedError, StageError, ValueError) as error:
            raise StageError(printable(f"{folder}: the scoring failed: {error}")) from error
    best = scores.sliding or scores.non_overlapping
    told = _info(folder)
    claimed = told.get("val_bpb")
    return Rescored(
        val_bpb_non_overlapping=scores.non_overlapping.bpb,
        val_bpb_sliding=scores.sliding.bpb if scores.sliding else None,
        val_loss=best.loss,
        num_targets=best.num_targets,
        num_bytes=best.num_bytes,
        blob_bytes=len(blob),
        blob_sha256=hashlib.sha256(blob).hexdigest(),
        precision=precision_note(compute),
        scored_by="the folder's train_gpt.py" if run_its_script else "fairway",
        scored_with=scored_with(scoring),
        claimed_with=_claimed_with(folder) if "eval_sequence_length" in told else "",
        claimed_val_bpb=claimed if isinstance(claimed, (int, float)) and abs(claimed) < 1e15 else None,
        seconds=time.perf_counter() - began,
    )


def _claimed_with(folder: Path) -> str:
    """The windows of the folder's claim in words; empty where they are impossible."""
    try:
        return scored_with(scoring_of(folder, None, None, None, None))
    except SpecError:
        return ""


def _check_inputs(shards: Sequence[Path], tokenizer: Path, any_tokenizer: bool) -> None:
    """Raises SpecError for a shard or a tokenizer that cannot be read.

    With `any_tokenizer` it need not be one of ours: only the folder's own script reads it.
    """
    for shard in shards:
        try:
            open_shard(shard)
        except (ShardError, OSError) as error:
            raise SpecError(f"--shards: {error}") from error
    if not tokenizer.is_file():
        raise SpecError(f"--tokenizer = {tokenizer}: no such file")
    if not any_tokenizer:
        ready_made_tokenizer(tokenizer, "--tokenizer")


def _package(folder: Path, blob: bytes, package: Path, run_its_script: bool) -> Path:
    """A new folder `package` with the blob and the script that scores it, the folder's or ours; returns
    the script.

    Raises SpecError for a blob that is no model of ours, where ours is to score it.
    """
    import torch

    package.mkdir()
    (package / BLOB_NAME).write_bytes(blob)
    script = package / SCRIPT_NAME
    if run_its_script:
        script.write_bytes(_read(folder / SCRIPT_NAME))
        return script
    try:
        load_packed_model(package / BLOB_NAME, torch.device("cpu"))
    except BlobError as error:
        raise SpecError(one_line(f"{folder / BLOB_NAME}: {error}")) from error
    script.write_text(program(PackageOptions(keep_comments=False), None)[0], encoding="utf-8")
    return script


def _blob(folder: Path) -> bytes:
    if not folder.is_dir():
        raise SpecError(f"FOLDER = {one_line(str(folder))}: no such folder")
    return _read(folder / BLOB_NAME)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, BLOB_LIMIT_BYTES)
    except UnreadableError as error:
        raise SpecError(one_line(f"FOLDER = {path.parent}: {error}")) from error


def _info(folder: Path) -> dict:
    try:
        return read_json_object(folder / INFO_NAME)
    except UnreadableError:
        return {}  # a folder is scored also without it; `fairway check` is what says so
