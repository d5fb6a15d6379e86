"""What ships: the whole run in one program, and the score of what it made in bits per byte.

    export DATA_PATH=data/datasets/fineweb10B_sp1024
    export TOKENIZER_PATH=data/tokenizers/fineweb_1024_bpe.model SEED=1337
    torchrun --standalone --nproc_per_node=N train_gpt.py          trains, merges, quantizes, packs, scores
    torchrun --standalone --nproc_per_node=N train_gpt.py --eval   scores the model.fwz beside this file

On several machines torchrun takes --nnodes, --node-rank, --master-addr and --master-port instead of
--standalone. Each machine needs the data; the first one gets the log and the blob.

Needs torch, numpy, sentencepiece and zstandard only. With --eval it reads the blob, the validation shards and
the tokenizer.
"""

import argparse
import glob
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from schemas.compute_settings import ComputeSettings
from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import AnyQuantizer, FittingSettings
from schemas.recipe import Recipe
from schemas.scoring_settings import ScoringSettings
from schemas.settings_base import from_dict
from stages.core.bits_per_byte import TokenBytes, WrongBosError, load_token_bytes
from stages.core.blob.packing import BlobError, unpack
from stages.core.distributed import (
    compute_dtype,
    cpu_multiplies_bfloat16,
    join_processes,
    leave_processes,
    machine_in_words,
    patient_group,
)
from stages.core.loader import TokenStream
from stages.core.lora_option import add_lora_option, lora_scores
from stages.core.model import GPT
from stages.core.packaged_recipe import MADE_ON, RECIPE
from stages.core.scoring import score, score_as_dict, score_line
from stages.core.whole_run import repeat_run

BLOB_FILE = "model.fwz"


def load_packed_model(blob_path: Path, device: torch.device) -> GPT:
    """The model of a blob with its dequantized weights.

    Raises BlobError for anything that is not a sound blob.
    """
    return model_of_blob(blob_path.read_bytes(), device)


def model_of_blob(blob: bytes, device: torch.device) -> GPT:
    """The same of a blob in memory."""
    state, metadata = unpack(blob)
    try:
        settings = from_dict(ModelSettings, metadata["model"])
        with torch.device(
            "meta"
        ):  # a stranger's settings must not allocate anything before they fit the tensors
            model = GPT(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise BlobError(f"the blob does not describe a model: {error!r}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        name = sorted(dict(set(expected.items()) ^ set(found.items())))[0]
        raise BlobError(
            f"tensor {name!r}: the settings ask for shape {expected.get(name)}, the blob has "
            f"{found.get(name)}"
        )
    model.load_state_dict(state, assign=True)
    return model.to(device)


def evaluate_blob(
    options: argparse.Namespace, blob_path: Path, say: Callable[[str], None]
) -> dict[str, dict[str, Any] | None]:
    """Scores by kind: non_overlapping, sliding where there are such windows or an attention window, and
    test_time_training where it is on.
    """
    compute, scoring = _settings(options)
    say_machine(compute, say)
    stream, table = TokenStream(_shards("--val", options.val)), _token_bytes(options.tokenizer)
    rank, _, device = join_processes(compute)
    try:
        model = model_of_blob(_blob_of_first(blob_path), device)
    except (OSError, BlobError) as error:
        raise SystemExit(f"{BLOB_FILE} beside the script: {error}") from error
    group = patient_group()
    dtype, text = compute_dtype(compute), (stream, table)

    def progress(kind: str) -> Callable[[float, float, str], None]:
        if rank or not options.progress:
            return lambda done, total, unit: None
        return lambda done, total, unit: print(f"@progress {done} {total} {unit}, {kind}", flush=True)

    scores: dict[str, dict[str, Any] | None] = {"non_overlapping": None, "sliding": None}
    passes: dict[str, tuple[int, int | None]] = {"non_overlapping": (scoring.sequence_length, None)}
    if scoring.overlapping:
        passes["sliding"] = scoring.overlapping[1], scoring.attention_window or None
    for kind, (stride, reach) in passes.items():
        started = time.perf_counter()
        sums = score(model, *text, scoring, stride, dtype, progress(kind), group, reach=reach)
        scored = score_as_dict(sums, time.perf_counter() - started)
        scores[kind] = scored
        say(score_line(kind, scored, reach))
    scores |= lora_scores(options, model, text, scoring, dtype, progress, group, say)
    if rank == 0 and options.json:
        Path(options.json).write_text(json.dumps(scores), encoding="utf-8")
    return scores


def train_blob(
    recipe: Recipe, options: argparse.Namespace, blob_path: Path, say: Callable[[str], None]
) -> None:
    """The recipe on this machine's processes, from the shards of `--train` to the blob.

    What only scoring needs is looked at first.
    """
    _settings(options)
    _shards("--val", options.val)
    num_pieces = len(_token_bytes(options.tokenizer).base_bytes)
    if num_pieces != recipe.train.model.vocab_size:
        raise SystemExit(
            f"--tokenizer {options.tokenizer}: has {num_pieces} pieces, the model "
            f"{recipe.train.model.vocab_size}"
        )
    num_nodes, num_processes = _processes()
    compute = replace(
        recipe.train.compute,
        device=options.device,
        num_nodes=num_nodes,
        num_processes=num_processes,
        precision=_precision(options, recipe.train.compute),
    )
    say_machine(compute, say)
    if compute != recipe.train.compute:
        meant, here = (
            f"{item.world_size} × {item.device} in {item.precision}"
            for item in (recipe.train.compute, compute)
        )
        say(f"the recipe is for {meant}, here it is {here}: the last digits will be others")
    train = replace(
        recipe.train, seed=recipe.train.seed if options.seed is None else options.seed, compute=compute
    )
    quantizer = knowing_its_code(recipe.quantizer, Path(__file__))
    repeat_run(
        replace(recipe, train=train, quantizer=quantizer), _shards("--train", options.train), blob_path, say
    )


def say_machine(compute: ComputeSettings, say: Callable[[str], None]) -> None:
    """The precision, and in what this machine computes otherwise than the one that the run was made on."""
    if os.environ.get("RANK", "0") != "0":
        return  # only the first process has a log
    here = machine_in_words(compute.device)
    say(f"precision {compute.precision} on {here}")
    if MADE_ON and here != MADE_ON:
        say(f"the run was made on {MADE_ON}: here the last digits will be others")
    if compute.device == "cpu" and compute.precision == "bfloat16" and not cpu_multiplies_bfloat16():
        say(
            "this CPU has no bfloat16 instructions: it will take many times as long as with "
            "--precision float32"
        )


def _precision(options: argparse.Namespace, otherwise: ComputeSettings) -> Literal["bfloat16", "float32"]:
    """What was asked for, else that of the recipe; `auto` is resolved by what this machine has
    instructions for.
    """
    asked = options.precision or otherwise.precision
    if asked == "auto":
        return "bfloat16" if options.device == "cuda" or cpu_multiplies_bfloat16() else "float32"
    return "bfloat16" if asked == "bfloat16" else "float32"


def _settings(options: argparse.Namespace) -> tuple[ComputeSettings, ScoringSettings]:
    """Of the scoring. Ends the program for options that it cannot have."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch sees no GPU; give --device cpu")
    num_nodes, num_processes = _processes()
    try:
        compute = ComputeSettings(
            device=options.device,
            threads_per_process=options.threads,
            precision=_precision(options, RECIPE.compute if RECIPE else ComputeSettings()),
            num_nodes=num_nodes,
            num_processes=num_processes,
        )
        return compute, _scoring(options)
    except ValueError as error:
        raise SystemExit(f"wrong option: {error}") from error


def _scoring(options: argparse.Namespace) -> ScoringSettings:
    """As asked; a stride or an attention window takes the place of both of the recipe's."""
    usual = RECIPE.scoring if RECIPE else ScoringSettings()
    overlap = usual.stride, usual.attention_window
    if options.stride is not None or options.attention_window is not None:
        overlap = options.stride or 0, options.attention_window or 0
    return ScoringSettings(
        options.sequence_length, overlap[0], options.batch_tokens, options.windows, overlap[1]
    )


def knowing_its_code(quantizer: AnyQuantizer, script: Path) -> AnyQuantizer:
    """Where a byte limit is to be met, the settings with the bytes of this very script, unless they have
    a number.

    The settings in the script cannot hold its length, which would depend on its own digits.
    """
    if isinstance(quantizer, FittingSettings) and quantizer.fit.lacks_code:
        return quantizer.with_code(script.stat().st_size)
    return quantizer


def submission_parser(recipe: Recipe | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train, pack and score the model, or only score the packed one."
    )
    data = glob.escape(os.environ.get("DATA_PATH", "data/datasets/fineweb10B_sp1024"))
    scoring = recipe.scoring if recipe else ScoringSettings()
    compute = (
        recipe.compute if recipe else ComputeSettings(device="cuda" if torch.cuda.is_available() else "cpu")
    )
    tokenizer = os.environ.get("TOKENIZER_PATH", "data/tokenizers/fineweb_1024_bpe.model")
    seed = os.environ.get("SEED")
    parser.add_argument("--eval", action="store_true", help="only score the blob")
    parser.add_argument(
        "--train",
        default=f"{data}/fineweb_train_*.bin",
        help="glob of the training shards (folder: DATA_PATH)",
    )
    parser.add_argument(
        "--val", default=f"{data}/fineweb_val_*.bin", help="glob of the validation shards (folder: DATA_PATH)"
    )
    parser.add_argument("--tokenizer", default=tokenizer, help="SentencePiece model (TOKENIZER_PATH)")
    parser.add_argument(
        "--seed", type=int, default=int(seed) if seed else None, help="another seed than the recipe's (SEED)"
    )
    parser.add_argument(
        "--sequence-length", type=int, default=scoring.sequence_length, help="tokens in a window"
    )
    parser.add_argument(
        "--stride",
        type=int,
        help=f"targets that each sliding window adds; 0 leaves them out (default: {scoring.stride})",
    )
    parser.add_argument(
        "--attention-window",
        type=int,
        help="instead of sliding windows: tokens that each token attends to, in one pass "
        f"(default: {scoring.attention_window})",
    )
    parser.add_argument(
        "--batch-tokens", type=int, default=scoring.batch_tokens, help="tokens in one forward pass"
    )
    parser.add_argument(
        "--windows",
        choices=("stream", "documents"),
        default=scoring.windows,
        help="over the stream of tokens, or inside each document",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=compute.device)
    parser.add_argument(
        "--precision", choices=("auto", "bfloat16", "float32"), help="of matrix products; empty: the recipe's"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=compute.threads_per_process,
        help="CPU threads of each process that scores",
    )
    add_lora_option(parser, recipe)
    parser.add_argument("--log-file", help="also write the log's lines to this file")
    parser.add_argument("--json", help="also write the scores to this file")
    parser.add_argument("--progress", action="store_true", help="print machine-readable progress lines")
    return parser


def main() -> None:
    options = submission_parser(RECIPE).parse_args()
    blob_path = Path(__file__).resolve().parent / BLOB_FILE
    say = _log(options.log_file)
    if not options.eval:
        if RECIPE is None:
            raise SystemExit(
                "this script was packaged without the settings of its run: it can only score (--eval)"
            )
        train_blob(RECIPE, options, blob_path, say)
    evaluate_blob(options, blob_path, say)
    leave_processes()


def _log(path: str | None) -> Callable[[str], None]:
    """Prints a line, and appends it to the file at `path`; in the first process only."""
    if os.environ.get("RANK", "0") != "0":
        return lambda line: None
    if path:
        Path(path).write_bytes(b"")

    def say(line: str) -> None:
        print(line, flush=True)
        if path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    return say


def _token_bytes(path: str) -> TokenBytes:
    try:
        return load_token_bytes(Path(path))
    except (WrongBosError, OSError, RuntimeError) as error:
        raise SystemExit(f"--tokenizer {path}: {error}") from error


def _blob_of_first(blob_path: Path) -> bytes:
    """The blob that the first process has: another machine's disk has none, or an older one."""
    if not dist.is_initialized():
        return blob_path.read_bytes()
    first = dist.get_rank() == 0
    blob = torch.frombuffer(bytearray(blob_path.read_bytes()), dtype=torch.uint8) if first else torch.empty(0)
    length = torch.tensor([len(blob)])
    dist.broadcast(length, src=0)
    if not first:
        blob = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(blob, src=0)
    return blob.numpy().tobytes()


def _processes() -> tuple[int, int]:
    """How many machines torchrun runs on, and how many processes it started on each."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % here:
        raise SystemExit(f"WORLD_SIZE = {world}: start {here} processes on each machine, as on this one")
    return world // here, here


def _shards(option: str, pattern: str) -> list[Path]:
    shards = [Path(path) for path in sorted(glob.glob(pattern))]
    if not shards:
        raise SystemExit(f"{option} {pattern}: no file matches")
    return shards


if __name__ == "__main__":
    main()
