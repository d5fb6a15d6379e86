"""Tokenization from a text file to shards on disk: the stage against SentencePiece's own `encode` of
whole documents.

    python -m benchmarks.tokenization [--runs 5] [--megabytes 100] [--threads 1 2] [--json results.jsonl]
    python -m benchmarks.tokenization --text 'books/*.parquet'
    python -m benchmarks.tokenization --gigabyte [--json results.jsonl]

Both sides read one JSON-lines file and leave shards, with the same ids, which is checked in every run. The
peer gives batches of whole documents to `encode(…, num_threads=N)` in its fastest form (arrays); ours is the
stage with N threads, with everything it does beside: hashing the corpus, splitting, counting bytes. The text
is the embedded corpus, its paragraphs repeated and shuffled into new documents, so few of its words are new.
`--text` takes that much of files of your own. Runs alternate; figures are medians.

`--gigabyte` runs the stage alone, tokenizer training included, on 1 GB and prints its peak memory.
"""

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import sentencepiece

from benchmarks.common import Figure, alternate, compared, parser_for, report, timed
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import (
    FilesCorpus,
    FirstDocuments,
    SotuCorpus,
    TokenizedCorpus,
    TokenizerSpec,
    TokenizeSpec,
)
from stages.core.shards import BOS_ID, ShardWriter, open_shard
from stages.corpora import documents, locate
from stages.store.hashing import FileHashes
from stages.store.workspace import Workspace
from stages.tokenization.tokenizer import train_tokenizer
from stages.tokenize_corpus import tokenize_corpus

LIMIT_RATIO = 4.0
PEAK_LIMIT_BYTES = 1_000_000_000
_DOCUMENT_CHARACTERS = 50_000  # as in the embedded corpus
_PEER_BATCH_CHARACTERS = 4_000_000
_NUM_VAL_DOCUMENTS = 10


def write_corpus(path: Path, num_bytes: int, seed: int = 0) -> None:
    """A JSON-lines file of at least `num_bytes`: paragraphs of the embedded corpus, drawn at random, in
    new documents.
    """
    spec = TokenizeSpec(corpus=SotuCorpus())
    paragraphs = [line for text in documents(spec.corpus, locate(spec)) for line in text.split("\n") if line]
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            chosen: list[str] = []
            while sum(map(len, chosen)) < _DOCUMENT_CHARACTERS:
                chosen += generator.choices(paragraphs, k=20)
            file.write(json.dumps({"text": "\n\n".join(chosen)}, ensure_ascii=False) + "\n")


def copy_corpus(files: str, path: Path, num_bytes: int) -> None:
    """A JSON-lines file of at least `num_bytes`, or all, of the documents of `files`, a pattern."""
    corpus = FilesCorpus(paths=(files,))
    with path.open("w", encoding="utf-8") as file:
        for text in documents(corpus, locate(TokenizeSpec(corpus=corpus))):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            if file.tell() >= num_bytes:
                return


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


def compare(corpus: Path, num_threads: int, runs: int) -> Figure:
    """Medians of alternating runs of both sides. Raises AssertionError when the ids differ."""
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "tokenizer.model"
        texts = (text for batch in _batches(corpus) for text in batch)
        model.write_bytes(train_tokenizer(TokenizerSpec(training_bytes=20_000_000), texts))
        spec = spec_for(corpus, TokenizerSpec(model_path=str(model)))
        shards: dict[str, list[Path]] = {}

        def fresh(side: str) -> Path:
            shutil.rmtree(Path(name) / side, ignore_errors=True)
            (Path(name) / side).mkdir()
            return Path(name) / side

        def ours() -> tuple[float, float]:
            folder = fresh("ours")
            seconds, result = timed(lambda: run_ours(spec, folder, num_threads))
            shards["ours"] = [folder / ref.path for ref in (*result.val_shards, *result.train_shards)]
            return seconds

        def peer() -> tuple[float, float]:
            folder = fresh("peer")
            seconds, shards["peer"] = timed(lambda: run_peer(corpus, model, folder, num_threads))
            assert np.array_equal(_tokens(shards["ours"]), _tokens(shards["peer"])), "the ids differ"
            return seconds

        samples = alternate({"ours": ours, "peer": peer}, runs)
    megabytes = corpus.stat().st_size / 1e6
    what = f"{megabytes:.0f} MB of text to shards, {num_threads} thread(s), identical ids"
    figure = compared(
        "tokenization", what, samples["ours"], samples["peer"], LIMIT_RATIO, text_bytes=corpus.stat().st_size
    )
    rates = {side: f"{megabytes / sample.median:.1f} MB/s" for side, sample in samples.items()}
    return replace(figure, ours=rates["ours"], peer=rates["peer"])


def gigabyte(corpus: Path, folder: Path) -> Figure:
    """One run of the whole stage, in this process, and the peak of its memory."""
    started = time.perf_counter()
    result = run_ours(spec_for(corpus, TokenizerSpec()), folder, 2)
    seconds = time.perf_counter() - started
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text_bytes, tokens = corpus.stat().st_size, result.train.num_tokens + result.val.num_tokens
    return Figure(
        "tokenization",
        f"the whole stage on {text_bytes / 1e6:.0f} MB, tokenizer training included, 2 threads",
        f"{seconds:.0f} s, peak {peak / 1e6:.0f} MB",
        "",
        None,
        "peak < 1 GB",
        peak < PEAK_LIMIT_BYTES,
        {"text_bytes": text_bytes, "tokens": tokens, "seconds": seconds, "peak_bytes": peak},
    )


def main() -> None:
    parser = parser_for("tokenization", "The stage against SentencePiece's own encode.")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the text (default: %(default)s)")
    parser.add_argument("--text", help="files to take the text from")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="threads of each side (default: 1 2)"
    )
    parser.add_argument(
        "--gigabyte",
        action="store_true",
        help="run the stage on 1 GB of text and print its time and peak memory",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.jsonl"
        if options.gigabyte:
            # In a process of its own, so that its peak is not that of making the text.
            command = [
                sys.executable,
                "-c",
                (
                    "import sys; from pathlib import Path; import benchmarks.tokenization as b; "
                    "b.write_corpus(Path(sys.argv[1]), 10**9)"
                ),
            ]
            subprocess.run([*command, str(corpus)], check=True)
            (folder := Path(name) / "out").mkdir()
            figures = [gigabyte(corpus, folder)]
        else:
            num_bytes = options.megabytes * 1_000_000
            if options.text:
                copy_corpus(options.text, corpus, num_bytes)
            else:
                write_corpus(corpus, num_bytes)
            figures = [compare(corpus, num_threads, options.runs) for num_threads in options.threads]
    report(figures, options.json)


def spec_for(corpus: Path, tokenizer: TokenizerSpec) -> TokenizeSpec:
    """The stage's spec for a JSON-lines file: ten validation documents, no compressors beside it."""
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


if __name__ == "__main__":
    main()
