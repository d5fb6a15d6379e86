"""A corpus in parts, of files or of row groups, gives the bytes that it gives whole, and one more file
tokenizes one more part.
"""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from itertools import cycle, pairwise
from pathlib import Path, PurePosixPath
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.errors import SpecError
from schemas.runtime import RunOptions
from schemas.stages import KNOWN_STAGES
from schemas.tokenize_corpus import (
    CorpusManifest,
    FilesCorpus,
    FirstDocuments,
    HashFraction,
    SotuCorpus,
    TokenizedCorpus,
    TokenizerSpec,
    TokenizeSpec,
)
from schemas.tokenize_parts import (
    CorpusPart,
    PartSpec,
    PartSplit,
    SplitSums,
    TokenizedPart,
    TokenizedParts,
    TokenizerModel,
)
from stages.core.shards import ShardWriter
from stages.corpora import documents, locate
from stages.make_tokenizer import make_tokenizer
from stages.store.hashing import FileHashes
from stages.store.keys import stage_key
from stages.store.workspace import Workspace
from stages.tokenization.assembly import assemble
from stages.tokenization.parts import PART_BYTES, corpus_parts, run_ends, why_whole
from stages.tokenization.tokenizer import train_tokenizer
from stages.tokenization.training_text import training_text
from stages.tokenize_corpus import tokenize_corpus
from stages.tokenize_part import tokenize_part

WORDS = ["union", "state", "naïve", "—", "12,345", "of the", "漢字", "🙂", "ﬁscal", "peace"]
TEXTS = [" ".join(WORDS[(n * k) % 10] + str(n) for k in range(1, 30)) + "\n" for n in range(80)]


class Bench:
    """A folder with a corpus, and steps on it as the runner calls them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        self.model = folder / "mine.model"
        self.model.write_bytes(train_tokenizer(TokenizerSpec(vocab_size=320), TEXTS))

    def work(self, **options) -> Workspace:
        self.runs += 1
        published_as = PurePosixPath(f"run{self.runs}")
        (out_dir := self.folder / published_as).mkdir()
        return Workspace(self.folder, out_dir, published_as, RunOptions(**options), FileHashes(None))

    def whole(self, spec: TokenizeSpec) -> TokenizedCorpus:
        return tokenize_corpus(spec, locate(spec), self.work())

    def parts(self, spec: TokenizeSpec, parts: list[CorpusPart]) -> TokenizedParts:
        text = training_text(spec, locate(spec), FileHashes(None))
        assert text is not None
        tokenizer = make_tokenizer(spec.tokenizer.derive(model_path=None), text, self.work())
        made = [self.part(spec, part, tokenizer) for part in parts]
        return TokenizedParts(tokenizer=tokenizer, parts=tuple(made), seconds=1.0)

    def part(self, spec: TokenizeSpec, part: CorpusPart, tokenizer: TokenizerModel) -> TokenizedPart:
        assert isinstance(spec.split, HashFraction)
        part_spec = PartSpec(corpus=spec.corpus, split=spec.split, keep_val_text=spec.compressor_baselines)
        return tokenize_part(part_spec, part, tokenizer, self.work())

    def together(self, spec: TokenizeSpec, parts: TokenizedParts) -> TokenizedCorpus:
        return tokenize_corpus(spec, locate(spec), self.work(parts=parts))


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def each_file_a_part(monkeypatch) -> None:
    monkeypatch.setattr("stages.tokenization.parts.PART_BYTES", 0)


def write(path: Path, texts: list[str]) -> str:
    """Write the documents as the format that the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=2)
        return str(path)
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def files_of(folder: Path, files: list[list[str]], endings: tuple[str, ...]) -> FilesCorpus:
    folder.mkdir()
    paths = [
        write(folder / f"{number:03d}{ending}", texts)
        for number, (texts, ending) in enumerate(named(files, endings))
    ]
    return FilesCorpus(paths=tuple(paths))


def named(files: list[list[str]], endings: tuple[str, ...]) -> list[tuple[list[str], str]]:
    return list(zip(files, cycle(endings)))


DOCUMENTS = st.lists(st.sampled_from([*TEXTS[:12], "", " \n", "\0", "a", "the same", "é" * 300]), max_size=6)


@settings(max_examples=8, deadline=None)
@given(
    files=st.lists(DOCUMENTS, min_size=2, max_size=5),
    endings=st.sampled_from([(".jsonl",), (".parquet", ".jsonl.gz")]),
    val_fraction=st.sampled_from([0.05, 0.3, 0.7]),
    shard_tokens=st.sampled_from([1, 7, 500, 10**8]),
    compressors=st.just(False),
)
@example([TEXTS[:9], [], TEXTS[9:30]], (".parquet", ".jsonl.gz"), 0.3, 500, True)
def test_parts_give_the_bytes_and_counts_of_the_whole_corpus(
    bench, files, endings, val_fraction, shard_tokens, compressors
):
    corpus = files_of(bench.folder / f"corpus{uuid4().hex}", files, endings)
    spec = TokenizeSpec(
        corpus=corpus,
        tokenizer=TokenizerSpec(vocab_size=320, model_path=str(bench.model)),
        split=HashFraction(val_fraction=val_fraction),
        shard_tokens=shard_tokens,
        compressor_baselines=compressors,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.tokenization.parts.PART_BYTES", 0)
        parts = corpus_parts(spec, locate(spec))
    row_groups = [
        -(-len(texts) // 2) if ending == ".parquet" else 1 for texts, ending in named(files, endings)
    ]
    assert len(parts) == sum(max(1, number) for number in row_groups)
    made = bench.parts(spec, parts)
    assert result_of(lambda: bench.together(spec, made)) == result_of(lambda: bench.whole(spec))


def result_of(run: Callable[[], TokenizedCorpus]) -> object:
    """What identifies the result, or the message of the refusal."""
    try:
        return run().identity()
    except SpecError as error:
        return str(error)


@pytest.mark.usefixtures("each_file_a_part")
def test_the_tokenizer_is_the_one_of_the_whole_corpus(bench, tmp_path):
    spec = TokenizeSpec(
        corpus=files_of(tmp_path / "corpus", [TEXTS[:30], TEXTS[30:]], (".jsonl",)),
        tokenizer=TokenizerSpec(vocab_size=300),
        split=HashFraction(val_fraction=0.3),
        shard_tokens=1000,
    )
    parts = bench.parts(spec, corpus_parts(spec, locate(spec)))
    assert bench.together(spec, parts).identity() == bench.whole(spec).identity()


@pytest.mark.usefixtures("each_file_a_part")
def test_row_groups_give_what_one_row_group_of_the_same_text_gives(bench, tmp_path):
    many, one = tmp_path / "many.parquet", tmp_path / "one.parquet"
    table = pa.table({"about": TEXTS, "meta": [{"text": text.encode()} for text in TEXTS]})
    pq.write_table(table, many, row_group_size=9)
    pq.write_table(table, one)
    spec, copy = (
        TokenizeSpec(
            corpus=FilesCorpus(paths=(str(path),), text_column="meta.text"),
            tokenizer=TokenizerSpec(vocab_size=300),
            split=HashFraction(val_fraction=0.3),
            shard_tokens=1000,
        )
        for path in (many, one)
    )
    assert corpus_parts(copy, locate(copy)) == []
    manifest = locate(spec)
    parts = corpus_parts(spec, manifest)
    objects = [file.derive(path=f"file://{file.path}") for file in manifest.files]
    assert corpus_parts(spec, manifest.derive(files=objects)) == [], "each part would fetch the whole object"
    assert [(part.first, part.end) for part in parts] == [(number, number + 1) for number in range(9)]
    read: list[int] = []
    texts = [list(documents(spec.corpus, part, on_read=read.append)) for part in parts]
    assert texts == [TEXTS[start : start + 9] for start in range(0, 80, 9)]
    assert sum(read) == sum(part.num_bytes for part in parts) == many.stat().st_size
    assert bench.together(spec, bench.parts(spec, parts)).identity() == bench.whole(copy).identity()


@pytest.mark.usefixtures("each_file_a_part")
def test_an_unusable_text_in_a_later_row_group_is_named_by_its_row_in_the_file(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [b"a", b"b", b"c", b"\xff"]}), path, row_group_size=1)
    spec = TokenizeSpec(corpus=FilesCorpus(paths=(str(path),)))
    last = corpus_parts(spec, locate(spec))[-1]
    with pytest.raises(SpecError, match=r"column 'text', row 3: byte 0 is not valid UTF-8"):
        list(documents(spec.corpus, last))


@given(st.lists(st.integers(0, 2 * PART_BYTES) | st.just(1000), max_size=40))
def test_row_groups_share_a_part_up_to_its_size_and_none_is_left_out(sizes):
    ends = run_ends(sizes)
    runs = [sizes[first:end] for first, end in pairwise([0, *ends])]
    assert [size for run in runs for size in run] == sizes
    assert len(runs) == 1 or all(sum(run) >= PART_BYTES for run in runs)
    halves = ((sum(run[:middle]), sum(run[middle:])) for run in runs for middle in range(len(run)))
    assert all(min(two) < PART_BYTES for two in halves), "a run could be two"


@pytest.mark.usefixtures("each_file_a_part")
@pytest.mark.parametrize(("ending", "parts"), [(".jsonl", 1), (".parquet", 3)])
def test_one_more_file_leaves_the_other_parts_and_the_tokenizer(tmp_path, ending, parts):
    folder = tmp_path / "corpus"
    files_of(folder, [TEXTS[:6], TEXTS[6:12]], (ending,))
    spec = TokenizeSpec(
        corpus=FilesCorpus(paths=(f"{folder}/*",)), tokenizer=TokenizerSpec(training_bytes=500)
    )
    before = keys_of(spec)
    write(folder / f"later{ending}", TEXTS[12:18])
    after = keys_of(spec)
    assert after[:-parts] == before
    assert len(set(after)) == 1 + 3 * parts


@pytest.mark.usefixtures("each_file_a_part")
def test_a_part_is_known_by_its_text_and_the_way_it_is_split_not_by_its_place(tmp_path):
    corpus = files_of(tmp_path / "corpus", [TEXTS[:20], TEXTS[20:40]], (".jsonl",))
    spec = TokenizeSpec(corpus=corpus, tokenizer=TokenizerSpec(training_bytes=5_000))
    (tmp_path / "corpus").rename(tmp_path / "moved")
    moved = spec.derive(
        corpus=FilesCorpus(paths=tuple(path.replace("corpus", "moved") for path in corpus.paths)),
        shard_tokens=77,
    )
    assert keys_of(moved) == keys_of(moved.derive(shard_tokens=10**8))
    assert keys_of(moved) != keys_of(moved.derive(split=HashFraction(val_fraction=0.5)))
    key = keys_of(moved)
    (tmp_path / "moved").rename(tmp_path / "corpus")
    assert keys_of(spec) == key


def keys_of(spec: TokenizeSpec) -> list[str]:
    """The keys of the tokenizer and of each part; the tokenizer's digest is that of its key."""
    manifest = locate(spec)
    text = training_text(spec, manifest, FileHashes(None))
    key = stage_key(KNOWN_STAGES["make_tokenizer"], spec.tokenizer, {"text": text})
    model = TokenizerModel.model_validate({"model": {"path": "a", "num_bytes": 1, "sha256": key}})
    part_spec = PartSpec(corpus=spec.corpus, split=spec.split, keep_val_text=True)
    return [key] + [
        stage_key(KNOWN_STAGES["tokenize_part"], part_spec, {"part": part, "tokenizer": model})
        for part in corpus_parts(spec, manifest)
    ]


def test_parts_of_another_corpus_are_refused(bench, tmp_path, each_file_a_part):
    spec = TokenizeSpec(
        corpus=files_of(tmp_path / "corpus", [TEXTS[:20], TEXTS[20:40]], (".jsonl",)),
        tokenizer=TokenizerSpec(vocab_size=320, model_path=str(bench.model)),
    )
    parts = bench.parts(spec, corpus_parts(spec, locate(spec)))
    swapped = parts.derive(parts=parts.parts[::-1])
    with pytest.raises(ValueError, match="not those of this corpus"):
        bench.together(spec, swapped)


def test_putting_parts_together_takes_no_memory_that_grows_with_them(bench):
    work = bench.work()
    path = work.out_dir / "train.u16"
    np.ones(20_000_000, np.uint16).tofile(path)  # 40 MB
    sums = {name: 20_000_000 if name == "num_tokens" else 1 for name in SplitSums.model_fields}
    split = PartSplit(tokens=work.ref(path), sums=SplitSums(**sums))
    shards = ShardWriter(work.out_dir, "train", 7_000_000)
    tracemalloc.start()
    try:
        total = assemble([split, split], shards, work)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (total.num_tokens, total.num_bos, len(shards.paths)) == (40_000_000, 2, 6)
    assert peak < 12_000_000


def test_small_neighbours_share_a_part_and_a_compressed_file_counts_as_its_text():
    spec = TokenizeSpec(corpus=FilesCorpus(paths=("*",)))
    sizes = {"a.txt": 20, "b.txt": 20, "c.txt": 40, "d.jsonl.gz": 11, "e.parquet": 11, "f.txt": 1}
    assert names_of(spec, sizes) == [["a.txt", "b.txt"], ["c.txt"], ["d.jsonl.gz"], ["e.parquet"], ["f.txt"]]
    assert names_of(spec, {**sizes, "g.txt": 5})[:-1] == names_of(spec, sizes)[:-1]
    assert names_of(spec, {"a.txt": 20, "b.txt": 11}) == []


def names_of(spec: TokenizeSpec, megabytes: dict[str, int]) -> list[list[str]]:
    manifest = CorpusManifest.model_validate(
        {
            "source": "",
            "files": [
                {"path": name, "num_bytes": size * 1_000_000, "sha256": "0" * 64}
                for name, size in megabytes.items()
            ],
            "formats": ["parquet" if "parquet" in name else "jsonl" for name in megabytes],
        }
    )
    return [[file.path for file in part.files] for part in corpus_parts(spec, manifest)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": FirstDocuments(num_val_documents=1)}, "needs the number of each document"),
        ({"corpus": SotuCorpus()}, "tokenize.corpus.kind = sotu"),
    ],
)
def test_what_needs_the_order_of_all_documents_stays_whole_and_says_why(changes, said):
    spec = TokenizeSpec(corpus=FilesCorpus(paths=("*",))).derive(**changes)
    assert said in why_whole(spec)
    assert names_of(spec, {"a.txt": 100, "b.txt": 100}) == []
