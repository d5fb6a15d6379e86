"""Ready-made shards: verified token by token, used where they lie, refused with what is wrong."""

import logging
import shutil
import struct
from pathlib import Path

import pytest
import sentencepiece

from schemas.errors import SpecError, StageError
from schemas.tokenize_corpus import ShardsCorpus, TokenizedCorpus, TokenizerSpec, TokenizeSpec
from stages.corpora import documents, locate, shards
from stages.corpora.sources import ignore_read, source_file
from stages.store.hashing import FileHashes
from stages.tokenization.tokenizer import train_tokenizer

TRAIN = [[1, 10, 11, 12, 1, 20], [21, 22, 1, 30]]  # three documents, the second cut by the end of a shard
VAL = [[1, 40, 41, 1, 50]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "fineweb.model"
    path.write_bytes(
        train_tokenizer(TokenizerSpec(vocab_size=280), ["a few words to learn from, and a few more words"])
    )
    return path


@pytest.fixture
def make_spec(tmp_path, tokenizer):
    def make(train=TRAIN, val=VAL, **spec) -> TokenizeSpec:
        for split, parts in (("train", train), ("val", val)):
            for index, tokens in enumerate(parts):
                header = struct.pack("<iii", 20240520, 1, len(tokens)).ljust(1024, b"\0")
                (tmp_path / f"fineweb_{split}_{index:06d}.bin").write_bytes(
                    header + struct.pack(f"<{len(tokens)}H", *tokens)
                )
        shutil.copy(tokenizer, tmp_path / "fineweb.model")
        return TokenizeSpec(
            corpus=ShardsCorpus(folder=str(tmp_path), tokenizer_model=str(tmp_path / "fineweb.model")), **spec
        )

    return make


def verify(spec: TokenizeSpec) -> TokenizedCorpus:
    return shards.verify(locate(spec), FileHashes(None), ignore_read)


def test_sound_shards_are_counted_and_used_where_they_lie(make_spec, tmp_path):
    result = verify(make_spec())
    assert [shard.path for shard in result.train_shards] == [
        str(tmp_path / f"fineweb_train_00000{i}.bin") for i in (0, 1)
    ]
    assert [shard.path for shard in result.val_shards] == [str(tmp_path / "fineweb_val_000000.bin")]
    assert (result.train.num_tokens, result.train.num_bos, result.train.num_documents) == (10, 3, 3)
    assert (result.val.num_tokens, result.val.num_bos, result.val.num_documents) == (5, 2, 2)
    assert result.val.utf8_bytes is None
    assert result.val.normalized_utf8_bytes is None
    assert (result.vocab_size, result.bos_id) == (280, 1)
    assert result.tokenizer.path == str(tmp_path / "fineweb.model")
    assert result.tokenizer_sha256 == result.tokenizer.sha256


def test_all_tokens_are_reported_as_read(make_spec):
    seen: list[int] = []
    shards.verify(locate(make_spec()), FileHashes(None), seen.append)
    assert sum(seen) == 2 * 15


def test_they_have_no_text_to_read(make_spec):
    spec = make_spec()
    with pytest.raises(TypeError, match="no text"):
        list(documents(spec.corpus, locate(spec)))


def test_a_truncated_shard_is_refused(make_spec, tmp_path):
    spec = make_spec()
    path = tmp_path / "fineweb_val_000000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(
        StageError,
        match=r"fineweb_val_000000\.bin: its header says 5 tokens, so 1,034 bytes; the file has 1,032",
    ):
        verify(spec)


def test_a_token_outside_the_vocabulary_is_named(make_spec):
    with pytest.raises(
        StageError, match=r"fineweb_train_000000\.bin: token 2 is 280, the tokenizer has 280 pieces"
    ):
        verify(make_spec(train=[[1, 5, 280, 6]]))


def test_shards_without_bos_are_refused(make_spec):
    with pytest.raises(StageError, match=r"the val shards hold no BOS \(id 1\)"):
        verify(make_spec(val=[[40, 41]]))


@pytest.mark.parametrize("train", [VAL, [[1, 10, 1, 40], [41, 1, 11]], [[1, 10, 1, 40, 41]]])
def test_a_validation_document_among_the_training_documents_is_refused_wherever_shards_cut_it(
    make_spec, train
):
    with pytest.raises(
        StageError, match=r"training documents are also in the validation split of 2: the splits overlap"
    ):
        verify(make_spec(train=train))


def test_one_copy_among_hundreds_of_documents_is_logged_and_no_reason_to_refuse(make_spec, caplog):
    val = [[token for number in range(200) for token in (1, 40 + number, 41)]]
    with caplog.at_level(logging.WARNING):
        assert verify(make_spec(train=[[1, 50, 41, 1, 9, 9]], val=val)).val.num_documents == 200
    assert "1 training documents are also among the 200" in caplog.text


def test_empty_documents_are_no_copies_of_each_other(make_spec):
    assert verify(make_spec(train=[[1, 1, 7]], val=[[1, 1, 8]])).train.num_documents == 2


@pytest.mark.parametrize(
    ("remove", "said"),
    [
        ("fineweb_train_*.bin", r"has no fineweb_train_\*\.bin"),
        ("fineweb_val_*.bin", r"has no fineweb_val_\*\.bin"),
        ("fineweb_val_000000.bin", r"fineweb_val_000000\.bin is missing before fineweb_val_000001\.bin"),
        ("fineweb.model", r"corpus\.tokenizer_model = .*there is no such file"),
    ],
)
def test_missing_files_are_named(make_spec, tmp_path, remove, said):
    spec = make_spec(val=[*VAL, [1, 60]])
    for path in tmp_path.glob(remove):
        path.unlink()
    with pytest.raises(SpecError, match=said):
        locate(spec)


def test_settings_that_would_be_ignored_or_are_empty_are_refused(make_spec, tmp_path):
    with pytest.raises(SpecError, match="shards have their own tokenizer"):
        locate(make_spec(tokenizer=TokenizerSpec(model_path="x.model")))
    with pytest.raises(SpecError, match=r"corpus\.folder = ''"):
        locate(TokenizeSpec(corpus=ShardsCorpus(tokenizer_model="x.model")))
    with pytest.raises(SpecError, match=r"corpus\.tokenizer_model = ''"):
        locate(TokenizeSpec(corpus=ShardsCorpus(folder=str(tmp_path))))


def test_a_tokenizer_that_is_none_is_refused(make_spec, tmp_path):
    spec = make_spec()
    (tmp_path / "fineweb.model").write_bytes(b"no model")
    with pytest.raises(SpecError, match=r"corpus\.tokenizer_model = .* is not a SentencePiece model"):
        verify(spec)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ({"bos_id": 2, "eos_id": 1}, "its BOS has the id 2; models and scores need id 1"),
        ({"bos_id": -1}, "has no BOS"),
    ],
)
def test_a_tokenizer_whose_bos_is_not_1_is_refused_before_shards_are_hashed(
    make_spec, tmp_path, ids, said, monkeypatch
):
    spec = make_spec()
    manifest = locate(spec)
    train = sentencepiece.SentencePieceTrainer.train
    text = ["a few words to learn from, and a few more words"] * 5
    options = {
        "model_prefix": str(tmp_path / "fineweb"),
        "model_type": "bpe",
        "vocab_size": 280,
        "byte_fallback": True,
        "minloglevel": 2,
    }
    train(sentence_iterator=iter(text), **(options | {"pad_id": 0, "unk_id": 3} | ids))
    with pytest.raises(
        SpecError, match=rf"corpus\.tokenizer_model = .*fineweb\.model: .*{said}.*Use a tokenizer"
    ):
        shards.verify(
            manifest.derive(tokenizer_model=source_file(tmp_path / "fineweb.model", FileHashes(None), "")),
            FileHashes(None),
            ignore_read,
        )
    monkeypatch.setattr(
        FileHashes,
        "sha256",
        lambda self, path: "0" * 64 if path.suffix == ".model" else pytest.fail("hashed"),
    )
    with pytest.raises(SpecError, match=said):
        locate(spec)


def test_a_shard_that_changed_since_it_was_hashed_is_refused(make_spec, tmp_path):
    manifest = locate(make_spec())
    path = tmp_path / "fineweb_train_000001.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"\x07\x00")
    with pytest.raises(StageError, match="changed since it was hashed"):
        shards.verify(manifest, FileHashes(None), ignore_read)
