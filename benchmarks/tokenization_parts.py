"""Tokenization in parts on threads of one process, against the one stage with as many threads.

    python -m benchmarks.tokenization_parts [--runs 3] [--megabytes 40] [--files 4] [--threads 2]
    python -m benchmarks.tokenization_parts --text 'books/*.parquet'

Both sides read the same files and leave the same shards, which is checked in every run; so the figure is what
parts cost or gain on one machine. Prefect's tasks are left out. The tokenizer is ready-made, as for a corpus
that grows. Runs alternate; figures are medians. Ours goes first in each pair, so a cold cache is its loss.
"""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path, PurePosixPath

from benchmarks.common import Figure, alternate, compared, parser_for, report, timed
from benchmarks.tokenization import write_corpus
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import (
    FilesCorpus,
    HashFraction,
    SotuCorpus,
    TokenizedCorpus,
    TokenizerSpec,
    TokenizeSpec,
)
from schemas.tokenize_parts import CorpusPart, PartSpec, TokenizedPart, TokenizedParts
from stages.corpora import documents, locate
from stages.make_tokenizer import make_tokenizer
from stages.store.hashing import FileHashes
from stages.store.workspace import Workspace
from stages.tokenization.parts import corpus_parts
from stages.tokenization.tokenizer import train_tokenizer
from stages.tokenization.training_text import training_text
from stages.tokenize_corpus import tokenize_corpus
from stages.tokenize_part import tokenize_part

GOAL_RATIO = 0.9


class Side:
    """One side of a run, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, count()
        folder.mkdir()

    def work(self, options: RunOptions) -> Workspace:
        place = PurePosixPath(str(next(self._numbers)))
        (self._folder / place).mkdir()
        return Workspace(self._folder, self._folder / place, place, options, FileHashes(None))


def run_whole(spec: TokenizeSpec, side: Side, threads: int) -> TokenizedCorpus:
    return tokenize_corpus(spec, locate(spec), side.work(RunOptions(encode_threads=threads)))


def run_parts(spec: TokenizeSpec, side: Side, threads: int) -> TokenizedCorpus:
    """What a run does, without its tasks: the tokenizer, the parts on threads, the shards."""
    manifest = locate(spec)
    text = training_text(spec, manifest, FileHashes(None))
    assert text is not None
    assert isinstance(spec.split, HashFraction)
    tokenizer = make_tokenizer(spec.tokenizer.derive(model_path=None), text, side.work(RunOptions()))
    part_spec = PartSpec(corpus=spec.corpus, split=spec.split, keep_val_text=False)

    def make(part: CorpusPart) -> TokenizedPart:
        return tokenize_part(part_spec, part, tokenizer, side.work(RunOptions(encode_threads=1)))

    with ThreadPoolExecutor(threads) as pool:
        made = tuple(pool.map(make, corpus_parts(spec, manifest)))
    parts = TokenizedParts(tokenizer=tokenizer, parts=made, seconds=0)
    return tokenize_corpus(spec, manifest, side.work(RunOptions(parts=parts)))


def compare(folder: Path, spec: TokenizeSpec, threads: int, runs: int) -> Figure:
    """Medians of alternating runs of both sides. Raises AssertionError when the shards differ."""
    results: dict[str, TokenizedCorpus] = {}

    def run(name: str) -> tuple[float, float]:
        shutil.rmtree(folder / name, ignore_errors=True)
        side = Side(folder / name)
        tokenize = run_parts if name == "parts" else run_whole
        seconds, results[name] = timed(lambda: tokenize(spec, side, threads))
        return seconds

    samples = alternate({"parts": lambda: run("parts"), "whole": lambda: run("whole")}, runs)
    assert results["parts"].identity() == results["whole"].identity(), "the shards differ"
    manifest = locate(spec)
    size = sum(file.num_bytes for file in manifest.files)
    parts = len(corpus_parts(spec, manifest))
    what = f"{size / 1e6:.0f} MB in {parts} parts, {threads} thread(s), identical shards"
    figure = compared("tokenization", what, samples["parts"], samples["whole"], GOAL_RATIO, text_bytes=size)
    rates = {name: f"{size / 1e6 / sample.median:.1f} MB/s" for name, sample in samples.items()}
    return replace(figure, ours=rates["parts"], peer=rates["whole"])


def main() -> None:
    parser = parser_for("tokenization_parts", "Tokenization in parts against the one stage.", runs=3)
    parser.add_argument("--megabytes", type=int, default=40, help="size of each file (default: %(default)s)")
    parser.add_argument("--files", type=int, default=4, help="number of files (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (default: %(default)s)")
    parser.add_argument("--text", help="files to tokenize; default: files of made-up text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(0 if options.text else options.files):
            write_corpus(folder / f"{number:03d}.jsonl", options.megabytes * 1_000_000, seed=number)
        sotu = TokenizeSpec(corpus=SotuCorpus())
        model = folder / "ready-made.model"
        model.write_bytes(train_tokenizer(TokenizerSpec(), documents(sotu.corpus, locate(sotu))))
        spec = TokenizeSpec(
            corpus=FilesCorpus(paths=(options.text or f"{folder}/*.jsonl",)),
            tokenizer=TokenizerSpec(model_path=str(model)),
            compressor_baselines=False,
        )
        report([compare(folder, spec, options.threads, options.runs)], options.json)


if __name__ == "__main__":
    main()
