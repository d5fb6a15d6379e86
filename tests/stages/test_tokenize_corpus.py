"""From text to shards: what is written is the text, what is counted is what was written, and what cannot
work is refused.
"""

import hashlib
import json
import logging
import lzma
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import sentencepiece
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SpecError, StageError
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from schemas.tokenize_corpus import (
    FilesCorpus,
    FirstDocuments,
    HashFraction,
    TokenizedCorpus,
    TokenizerSpec,
    TokenizeSpec,
)
from stages.core.shards import open_shard
from stages.corpora import locate
from stages.store.hashing import FileHashes
from stages.store.keys import stage_key
from stages.store.workspace import Workspace
from stages.tokenization.splits import split_of
from stages.tokenization.tokenizer import sentences, train_tokenizer
from stages.tokenize_corpus import tokenize_corpus

WORDS = [
    "union",
    "state",
    "treasury",
    "naïve",
    "café",
    "—",
    "12,345",
    "of\u00a0the",
    "漢字",
    "🙂",
    "peace",
    "war",
    "commerce",
    "ﬁscal",
]
TEXTS = [
    " ".join(WORDS[(number * step) % len(WORDS)] + str(number) for step in range(1, 40)) + "\n"
    for number in range(60)
]
TOKENIZER = TokenizerSpec(vocab_size=320)


class Bench:
    """A folder with a corpus of one document a line, and runs of the stage on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        self.progress: list[tuple[float, float, str]] = []

    def spec(self, texts: list[str], **changes) -> TokenizeSpec:
        path = self.folder / "corpus.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        values = {
            "corpus": FilesCorpus(paths=(str(path),)),
            "tokenizer": TOKENIZER,
            "split": HashFraction(val_fraction=0.3),
        }
        return TokenizeSpec(**(values | changes))

    def run(self, spec: TokenizeSpec) -> tuple[TokenizedCorpus, Workspace]:
        self.runs += 1
        published_as = PurePosixPath(f"run{self.runs}")
        out_dir = self.folder / published_as
        out_dir.mkdir()
        work = Workspace(
            self.folder,
            out_dir,
            published_as,
            RunOptions(),
            FileHashes(None),
            lambda *said: self.progress.append(said),
        )
        return tokenize_corpus(spec, locate(spec), work), work


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("ending", "split", "named"),
    [
        (".txt", FirstDocuments(num_val_documents=1), " (held out: a.txt)"),
        (".txt", FirstDocuments(num_val_documents=4), " (held out: a.txt, c.txt, d.txt)"),  # b.txt is empty
        (".txt", FirstDocuments(num_val_documents=5), ""),
        (".txt", HashFraction(val_fraction=0.3), " (held out: c.txt, d.txt)"),
        (".jsonl", FirstDocuments(num_val_documents=1), ""),
    ],
)
def test_the_log_names_the_files_of_a_validation_split_of_few_files(bench, caplog, ending, split, named):
    caplog.set_level(logging.INFO, "stages.tokenize_corpus")
    texts = [TEXTS[0], "", *TEXTS[1:6]]
    for name, text in zip("abcdefg", texts, strict=True):
        content = text if ending == ".txt" else json.dumps({"text": text})
        (bench.folder / f"{name}{ending}").write_text(content)
    corpus = FilesCorpus(paths=(str(bench.folder / f"*{ending}"),))
    result, _ = bench.run(bench.spec([], corpus=corpus, split=split))
    counts = f"{result.train.num_documents} training and {result.val.num_documents} validation documents"
    assert caplog.messages[-1].endswith(counts + named)


def split_texts(spec: TokenizeSpec, texts: list[str], name: str) -> list[str]:
    return [text for index, text in enumerate(texts) if split_of(spec.split, index, text) == name]


def read_split(work: Workspace, shards) -> list[int]:
    return [token for shard in shards for token in open_shard(work.read(shard)).tolist()]


@pytest.mark.parametrize("split", [HashFraction(val_fraction=0.3), FirstDocuments(num_val_documents=7)])
def test_shards_hold_each_document_once_in_order_as_bos_and_its_ids(bench, split):
    spec = bench.spec(TEXTS, split=split, shard_tokens=500)
    result, work = bench.run(spec)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(work.read(result.tokenizer)))
    for name, shards, counts in (
        ("train", result.train_shards, result.train),
        ("val", result.val_shards, result.val),
    ):
        texts = split_texts(spec, TEXTS, name)
        expected = [token for text in texts for token in [1, *tokenizer.encode(text)]]
        assert read_split(work, shards) == expected
        assert len(shards) == -(-len(expected) // 500)
        assert (counts.num_documents, counts.num_bos, counts.num_tokens) == (
            len(texts),
            len(texts),
            len(expected),
        )
        assert counts.utf8_bytes == sum(len(text.encode()) for text in texts)
        assert counts.normalized_utf8_bytes == sum(
            len(tokenizer.normalize(text).replace("▁", " ").encode()) for text in texts
        )
    assert sorted(path.name for path in work.out_dir.iterdir()) == sorted(
        ref.name for ref in (result.tokenizer, *result.train_shards, *result.val_shards)
    )


def test_the_tokenizer_is_the_official_kind(bench):
    result, work = bench.run(bench.spec(TEXTS))
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(work.read(result.tokenizer)))
    assert (tokenizer.pad_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()) == (0, 1, 2, 3)
    assert tokenizer.vocab_size() == result.vocab_size == 320
    assert [tokenizer.is_byte(token) for token in (3, 4, 259, 260)] == [False, True, True, False]
    assert tokenizer.normalize("  ﬁne\n two ") == "fine▁two"
    pieces = [tokenizer.id_to_piece(token) for token in range(260, 320)]
    assert not any(any(c.isdigit() for c in piece) and len(piece) > 1 for piece in pieces)
    assert result.tokenizer_sha256 == hashlib.sha256(work.read(result.tokenizer).read_bytes()).hexdigest()


def test_two_runs_give_the_same_bytes(bench):
    spec = bench.spec(TEXTS)
    (first, _), (second, _) = bench.run(spec), bench.run(spec)
    assert first.identity() == second.identity()


def test_the_number_of_threads_does_not_bear_on_the_result(bench, monkeypatch):
    alone, _ = bench.run(bench.spec(TEXTS))
    monkeypatch.setattr("stages.tokenize_corpus._SHARED_FROM_BYTES", 0)
    monkeypatch.setattr("stages.tokenization.fast_encode._BATCH_CHARACTERS", 1000)
    shared, _ = bench.run(bench.spec(TEXTS))
    assert alone.identity() == shared.identity()


def test_the_tokenizer_is_trained_on_training_documents_only(bench):
    texts = ["zyx zyx zyx qqq " * 30, *TEXTS]
    with_other_validation = ["entirely different text " * 30, *TEXTS]
    results = [
        bench.run(bench.spec(list_, split=FirstDocuments(num_val_documents=1)))[0]
        for list_ in (texts, with_other_validation)
    ]
    assert results[0].tokenizer_sha256 == results[1].tokenizer_sha256
    assert results[0].val.num_tokens != results[1].val.num_tokens


def test_long_lines_are_not_lost_for_training(bench):
    long_line = " ".join(["mississippi"] * 2000)
    result, work = bench.run(
        bench.spec(
            ["x y z", long_line],
            split=FirstDocuments(num_val_documents=1),
            tokenizer=TokenizerSpec(vocab_size=275),
        )
    )
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(work.read(result.tokenizer)))
    assert "▁mississippi" in [tokenizer.id_to_piece(token) for token in range(275)]


@given(texts=st.lists(st.text(alphabet="ab é漢\n🙂", max_size=50), max_size=5))
def test_training_sentences_are_the_lines_cut_short_with_nothing_lost(texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.tokenization.tokenizer.MAX_SENTENCE_BYTES", 16)
        cut = list(sentences(texts, 10**9))
    assert all(len(sentence.encode()) <= 16 for sentence in cut)
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    assert "".join(cut) == "".join(lines)


def test_the_training_text_is_bounded_in_bytes():
    taken = list(sentences((f"line {number}\n" * 10 for number in range(10**9)), 1000))
    assert 980 <= sum(len(sentence.encode()) for sentence in taken) <= 1000
    assert list(sentences(["a long first line"], 3)) == ["a long first line"]


def test_a_space_has_a_piece_even_if_the_training_text_has_none():
    model = train_tokenizer(TokenizerSpec(vocab_size=268), ["abc\ndef\nabcd\n" * 20])
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer.piece_to_id("▁") != tokenizer.unk_id()


def test_empty_documents_are_left_out_and_counted(bench):
    texts = ["", " \n\u200b\t", *TEXTS, ""]
    result, _ = bench.run(bench.spec(texts, split=FirstDocuments(num_val_documents=5)))
    assert (result.val.num_documents, result.val.num_empty_documents_skipped) == (3, 2)
    assert (result.train.num_documents, result.train.num_empty_documents_skipped) == (57, 1)


def test_compressors_are_measured_on_the_validation_text_alone(bench):
    spec = bench.spec(TEXTS)
    result, _ = bench.run(spec)
    text = "".join(split_texts(spec, TEXTS, "val")).encode()
    assert result.val.zstd_bytes == len(zstandard.ZstdCompressor(level=22).compress(text))
    assert result.val.xz_bytes == len(lzma.compress(text, preset=9))
    assert (result.train.zstd_bytes, result.train.xz_bytes) == (None, None)
    without, _ = bench.run(spec.derive(compressor_baselines=False))
    assert (without.val.zstd_bytes, without.val.xz_bytes) == (None, None)


def test_progress_reaches_the_end_of_the_files(bench):
    spec = bench.spec(TEXTS)
    bench.run(spec)
    size = Path(spec.corpus.paths[0]).stat().st_size
    assert bench.progress[-1] == (size, size, "bytes")


def test_a_ready_made_tokenizer_is_copied_and_its_content_bears_on_the_key(bench, tmp_path):
    path = tmp_path / "mine.model"
    path.write_bytes(train_tokenizer(TOKENIZER, TEXTS[:30]))
    spec = bench.spec(TEXTS, tokenizer=TOKENIZER.derive(model_path=str(path)))
    result, work = bench.run(spec)
    assert work.read(result.tokenizer).read_bytes() == path.read_bytes()
    before = stage_key(STAGES["tokenize_corpus"], spec, {"manifest": locate(spec)})
    path.write_bytes(train_tokenizer(TOKENIZER, TEXTS[20:]))
    assert stage_key(STAGES["tokenize_corpus"], spec, {"manifest": locate(spec)}) != before


def other_ids(path: Path) -> None:
    model = sentencepiece.SentencePieceTrainer
    model.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=320,
        minloglevel=2,
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, r"tokenizer\.model_path = .*there is no such file"),
        (lambda path: path.write_bytes(b"abc"), r"tokenizer\.model_path = .*is not a SentencePiece model"),
        (
            lambda path: path.write_bytes(train_tokenizer(TokenizerSpec(vocab_size=300), TEXTS)),
            r"has 300 pieces. Set it to 300",
        ),
        (other_ids, r"its ids are pad -1, bos 1, eos 2, unk 0"),
    ],
)
def test_a_ready_made_tokenizer_that_does_not_fit_is_refused(bench, tmp_path, make, said):
    path = tmp_path / "mine.model"
    make(path)
    with pytest.raises(SpecError, match=said):
        bench.run(bench.spec(TEXTS, tokenizer=TOKENIZER.derive(model_path=str(path))))


@pytest.mark.parametrize(
    ("texts", "changes", "said"),
    [
        ([], {}, "hold no document"),
        (["", " \n"], {}, "all of its 2 documents are empty"),
        (["", "\u200b"], {"split": FirstDocuments(num_val_documents=1)}, "all of its 2 documents are empty"),
        (
            TEXTS,
            {"split": FirstDocuments(num_val_documents=60)},
            r"split\.num_val_documents = 60: leaves no training document with text, of 60",
        ),
        (
            ["", *TEXTS],
            {"split": FirstDocuments(num_val_documents=1)},
            r"split\.num_val_documents = 1: leaves no validation document",
        ),
        (
            TEXTS[:3],
            {"split": HashFraction(val_fraction=1e-9)},
            r"split\.val_fraction = 1e-09: .*none of the 3 documents .*validation. Raise it",
        ),
        (
            TEXTS[:3],
            {"split": HashFraction(val_fraction=1 - 1e-9)},
            r"split\.val_fraction.*training. Lower it",
        ),
        (
            TEXTS,
            {"tokenizer": TokenizerSpec(vocab_size=60_000)},
            r"tokenizer\.vocab_size = 60000: .*too small for so many pieces. Set it to at most \d",
        ),
        (
            TEXTS,
            {"tokenizer": TokenizerSpec(vocab_size=262)},
            r"tokenizer\.vocab_size = 262: .*at least \d+ pieces",
        ),
        (["\0\0 \0", "\0"] * 5, {}, "all of its 10 documents are empty"),
    ],
)
def test_what_cannot_be_split_or_learnt_is_refused_with_a_remedy(bench, texts, changes, said):
    with pytest.raises(SpecError, match=said):
        bench.run(bench.spec(texts, **changes))


def test_the_same_document_in_both_splits_is_refused_even_if_its_spaces_differ(bench):
    with pytest.raises(
        StageError,
        match="document 60 of the training split has the same text as document 2 of the validation split",
    ):
        bench.run(
            bench.spec([*TEXTS, TEXTS[2].replace(" ", "\n\n")], split=FirstDocuments(num_val_documents=5))
        )


def test_equal_documents_stay_together_when_split_by_hash(bench):
    texts = [text for text in TEXTS[:20] for _ in range(3)]
    spec = bench.spec(texts)
    result, _ = bench.run(spec)
    assert set(split_texts(spec, texts, "val")).isdisjoint(split_texts(spec, texts, "train"))
    assert result.val.num_documents % 3 == 0


def test_the_split_by_hash_is_that_of_the_texts_sha256():
    split = HashFraction(val_fraction=0.25)
    texts = [f"text {number}" for number in range(400)]
    expected = [
        "val" if int(hashlib.sha256(text.encode()).hexdigest(), 16) / 2**256 < 0.25 else "train"
        for text in texts
    ]
    assert [split_of(split, index, text) for index, text in enumerate(texts)] == expected
    assert 70 <= expected.count("val") <= 130


def test_ready_made_shards_pass_through_the_stage_uncopied(bench, tmp_path):
    made, work = bench.run(bench.spec(TEXTS))
    folder = tmp_path / "ready"
    folder.mkdir()
    for ref in (made.tokenizer, *made.train_shards, *made.val_shards):
        shutil.copy(work.read(ref), folder / ref.name)
    corpus = {"kind": "shards", "folder": str(folder), "tokenizer_model": str(folder / "tokenizer.model")}
    result, work = bench.run(TokenizeSpec.model_validate({"corpus": corpus}))
    assert list(work.out_dir.iterdir()) == []
    assert (result.train.num_tokens, result.val.num_bos) == (made.train.num_tokens, made.val.num_bos)
    assert np.array_equal(
        open_shard(work.read(result.val_shards[0])), open_shard(folder / "fineweb_val_000000.bin")
    )
