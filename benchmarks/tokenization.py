"""Tokenization from a text file to shards on disk: the stage against SentencePiece's own `encode` of whole documents.

    python -m benchmarks.tokenization [--runs 5] [--megabytes 100] [--threads 1 2] [--json results.jsonl]
    python -m benchmarks.tokenization --gigabyte [--json results.jsonl]

Both sides read one JSON-lines file and leave shards, with the same ids, which is checked in every run. The peer gives
batches of whole documents to `encode(…, num_threads=N)` in its fastest form (arrays); ours is the stage with N threads,
with everything it does beside: hashing the corpus, splitting, counting bytes. The text is the embedded corpus,
its paragraphs repeated and shuffled into new documents. Runs alternate; figures are medians. `--gigabyte` runs the stage
alone, tokenizer training included, on 1 GB and prints its peak memory.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import sentencepiece
from rich.console import Console
from rich.table import Table

from schemas.runtime import RunOptions
from schemas.tokenize_corpus import FilesCorpus, FirstDocuments, SotuCorpus, TokenizedCorpus, TokenizerSpec, TokenizeSpec
from stages.core.shards import ShardWriter, open_shard
from stages.corpora import documents, locate
from stages.hashing import FileHashes
from stages.tokenization.tokenizer import BOS_ID, train_tokenizer
from stages.tokenize_corpus import tokenize_corpus
from stages.workspace import Workspace

LIMIT_RATIO = 4.0
PEAK_LIMIT_BYTES = 1_000_000_000
_DOCUMENT_CHARACTERS = 50_000  # as in the embedded corpus
_PEER_BATCH_CHARACTERS = 4_000_000
_NUM_VAL_DOCUMENTS = 10


def write_corpus(path: Path, num_bytes: int, seed: int = 0) -> None:
    """A JSON-lines file of at least `num_bytes`: paragraphs of the embedded corpus, drawn at random, in new documents."""
    spec = TokenizeSpec(corpus=SotuCorpus())
    paragraphs = [line for text in documents(spec.corpus, locate(spec)) for line in text.split("\n") if line]
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            chosen: list[str] = []
            while sum(map(len, chosen)) < _DOCUMENT_CHARACTERS:
                chosen += generator.choices(paragraphs, k=20)
            file.write(json.dumps({"text": "\n\n".join(chosen)}, ensure_ascii=False) + "\n")


def run_peer(corpus: Path, model: Path, folder: Path, num_threads: int) -> list[Path]:
    """What scripts do: whole documents to `encode`, the ids to a shard."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model))
    bos = np.array([BOS_ID], np.uint16)
    with ShardWriter(folder, "train") as writer:
        for batch in _batches(corpus):
            for ids in tokenizer.encode(batch, num_threads=num_threads, return_type="numpy"):
                writer.write(bos)
                writer.write(ids.astype(np.uint16))
    return writer.paths


def run_ours(spec: TokenizeSpec, folder: Path, num_threads: int) -> TokenizedCorpus:
    """The stage, as the runner calls it on a corpus never seen before."""
    runtime = RunOptions(encode_threads=num_threads)
    work = Workspace(folder, folder, PurePosixPath(), runtime, FileHashes(None))
    return tokenize_corpus(spec, locate(spec), work)


def compare(corpus: Path, num_threads: int, runs: int) -> dict:
    """Medians of alternating runs of both sides. Raises AssertionError when the ids differ."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "tokenizer.model"
        texts = (text for batch in _batches(corpus) for text in batch)
        model.write_bytes(train_tokenizer(TokenizerSpec(training_bytes=20_000_000), texts))
        spec = _spec(corpus, TokenizerSpec(model_path=str(model)))
        for run in range(runs):
            folders = {side: Path(name) / f"{side}{run}" for side in seconds}
            for folder in folders.values():
                folder.mkdir()
            started = time.perf_counter()
            result = run_ours(spec, folders["ours"], num_threads)
            seconds["ours"].append(time.perf_counter() - started)
            started = time.perf_counter()
            peer_shards = run_peer(corpus, model, folders["peer"], num_threads)
            seconds["peer"].append(time.perf_counter() - started)
            ours_shards = [folders["ours"] / ref.path for ref in (*result.val_shards, *result.train_shards)]
            assert np.array_equal(_tokens(ours_shards), _tokens(peer_shards)), "the ids differ"
    ours, peer = statistics.median(seconds["ours"]), statistics.median(seconds["peer"])
    return {
        "benchmark": "tokenization",
        "threads": num_threads,
        "text_bytes": corpus.stat().st_size,
        "runs": runs,
        "ours_seconds": ours,
        "peer_seconds": peer,
        "samples_seconds": seconds,
        "ratio": peer / ours,
        "limit_ratio": LIMIT_RATIO,
        "identical_ids": True,
    }


def gigabyte(corpus: Path, folder: Path) -> dict:
    """One run of the whole stage, in this process, and the peak of its memory."""
    spec = _spec(corpus, TokenizerSpec())
    num_threads = 2
    started = time.perf_counter()
    result = run_ours(spec, folder, num_threads)
    seconds = time.perf_counter() - started
    return {
        "benchmark": "tokenization of a gigabyte",
        "threads": num_threads,
        "text_bytes": corpus.stat().st_size,
        "tokens": result.train.num_tokens + result.val.num_tokens,
        "ours_seconds": seconds,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "limit_peak_bytes": PEAK_LIMIT_BYTES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenization", description="The stage against SentencePiece's own encode.")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each side (default: %(default)s)")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the text (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of each side (default: 1 2)")
    parser.add_argument("--gigabyte", action="store_true", help="run the stage on 1 GB of text and print its time and peak memory")
    parser.add_argument("--json", type=Path, help="append the figures to this file as JSON lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.jsonl"
        if options.gigabyte:
            # In a process of its own, so that its peak is not that of making the text.
            command = [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; import benchmarks.tokenization as b; b.write_corpus(Path(sys.argv[1]), 10**9)",
            ]
            subprocess.run([*command, str(corpus)], check=True)
            (folder := Path(name) / "out").mkdir()
            results = [gigabyte(corpus, folder)]
            _show_gigabyte(results[0])
        else:
            write_corpus(corpus, options.megabytes * 1_000_000)
            results = [compare(corpus, num_threads, options.runs) for num_threads in options.threads]
            _show_comparison(results)
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            for result in results:
                file.write(json.dumps(result | _circumstances()) + "\n")


def _spec(corpus: Path, tokenizer: TokenizerSpec) -> TokenizeSpec:
    return TokenizeSpec(
        corpus=FilesCorpus(paths=(str(corpus),)),
        tokenizer=tokenizer,
        split=FirstDocuments(num_val_documents=_NUM_VAL_DOCUMENTS),
        compressor_baselines=False,
    )


def _batches(corpus: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    with corpus.open(encoding="utf-8") as file:
        for line in file:
            batch.append(json.loads(line)["text"])
            if sum(map(len, batch)) >= _PEER_BATCH_CHARACTERS:
                yield batch
                batch = []
    if batch:
        yield batch


def _tokens(shards: list[Path]) -> np.ndarray:
    return np.concatenate([open_shard(path) for path in shards])


def _show_comparison(results: list[dict]) -> None:
    megabytes = results[0]["text_bytes"] / 1e6
    table = Table(title=f"{megabytes:.0f} MB of text to shards, median of {results[0]['runs']} alternating runs, identical ids")
    for column in ("threads", "ours, s", "ours, MB/s", "peer, s", "peer, MB/s", "ratio", "goal"):
        table.add_column(column, justify="right")
    for row in results:
        ours, peer = row["ours_seconds"], row["peer_seconds"]
        figures = (
            f"{ours:.2f}",
            f"{megabytes / ours:.1f}",
            f"{peer:.2f}",
            f"{megabytes / peer:.1f}",
            f"{row['ratio']:.1f}×",
            f"≥ {LIMIT_RATIO:.0f}×",
        )
        table.add_row(str(row["threads"]), *figures)
    Console().print(table)


def _show_gigabyte(row: dict) -> None:
    table = Table(title="The whole stage, tokenizer training included")
    for column in ("text, MB", "tokens", "seconds", "MB/s", "peak memory, MB", "goal"):
        table.add_column(column, justify="right")
    megabytes = row["text_bytes"] / 1e6
    figures = (f"{row['ours_seconds']:.1f}", f"{megabytes / row['ours_seconds']:.1f}", f"{row['peak_bytes'] / 1e6:.0f}")
    table.add_row(f"{megabytes:.0f}", f"{row['tokens']:,}", *figures, f"≤ {PEAK_LIMIT_BYTES / 1e6:.0f}")
    Console().print(table)


def _circumstances() -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "commit": commit or "unknown"}


if __name__ == "__main__":
    main()
