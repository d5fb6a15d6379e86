"""What ships: score the packed model beside this file in bits per byte.

    torchrun --standalone --nproc_per_node=N train_gpt.py --eval --val "fineweb_val_*.bin" --tokenizer tokenizer.model

Needs torch, numpy, sentencepiece and zstandard only; reads the blob, the validation shards and the tokenizer only.
"""

import argparse
import glob
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from schemas.settings import ComputeSettings, ModelSettings, ScoringSettings, from_dict
from stages.core.bits_per_byte import load_token_bytes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.packing import BlobError, unpack
from stages.core.processes import compute_dtype, join_processes
from stages.core.scoring import score, score_as_dict

BLOB_FILE = "model.fwz"


def load_packed_model(blob_path: Path, device: torch.device) -> GPT:
    """The model of a blob with its dequantized weights. Raises BlobError for anything that is not a sound blob."""
    state, metadata = unpack(blob_path.read_bytes())
    try:
        settings = from_dict(ModelSettings, metadata["model"])
        with torch.device("meta"):  # a stranger's settings must not allocate anything before they fit the tensors
            model = GPT(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise BlobError(f"the blob does not describe a model: {error!r}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        name = sorted(dict(set(expected.items()) ^ set(found.items())))[0]
        raise BlobError(f"tensor {name!r}: the settings ask for shape {expected.get(name)}, the blob has {found.get(name)}")
    model.load_state_dict(state, assign=True)
    return model.to(device)


def evaluate_blob(options: argparse.Namespace) -> dict[str, dict[str, float] | None]:
    """Scores by kind: non_overlapping, and sliding when the stride is not 0."""
    compute = ComputeSettings(
        device=options.device,
        threads_per_process=options.threads,
        precision=options.precision,
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    scoring = ScoringSettings(options.sequence_length, options.stride, options.batch_tokens)
    rank, _, device = join_processes(compute)
    model = load_packed_model(Path(__file__).resolve().parent / BLOB_FILE, device)
    shards = [Path(path) for path in sorted(glob.glob(options.val))]
    if not shards:
        raise SystemExit(f"--val {options.val}: no file matches")
    stream, table = TokenStream(shards), load_token_bytes(Path(options.tokenizer))
    scores: dict[str, dict[str, float] | None] = {"non_overlapping": None, "sliding": None}
    for kind, stride in (("non_overlapping", scoring.sequence_length), ("sliding", scoring.stride)):
        if not stride:
            continue
        started = time.perf_counter()

        def progress(done: float, total: float, unit: str, kind: str = kind) -> None:
            if rank == 0 and options.progress:
                print(f"@progress {done} {total} {unit}, {kind}", flush=True)

        sums = score(model, stream, table, scoring, stride, compute_dtype(compute), progress)
        scores[kind] = score_as_dict(sums, time.perf_counter() - started)
        if rank == 0:
            print(f"val_bpb_{kind} {sums.bpb:.6f} val_loss {sums.loss:.6f} targets {sums.num_targets} bytes {sums.num_bytes}", flush=True)
    if rank == 0 and options.json:
        Path(options.json).write_text(json.dumps(scores), encoding="utf-8")
    return scores


def submission_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Score the packed model beside this file in bits per byte.")
    parser.add_argument("--eval", action="store_true", required=True, help="score the blob")
    parser.add_argument("--val", required=True, help="glob of the validation shards")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece model")
    parser.add_argument("--sequence-length", type=int, default=2048, help="tokens in a window")
    parser.add_argument("--stride", type=int, default=64, help="targets that each sliding window adds; 0 leaves them out")
    parser.add_argument("--batch-tokens", type=int, default=65_536, help="tokens in one forward pass")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each process")
    parser.add_argument("--json", help="also write the scores to this file")
    parser.add_argument("--progress", action="store_true", help="print machine-readable progress lines")
    return parser


def main() -> None:
    evaluate_blob(submission_parser().parse_args())
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
