"""The fast path gives SentencePiece's own ids: over arbitrary Unicode, over the corpus, and it knows
where it must not be used.
"""

import io
import itertools

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.tokenize_corpus import SotuCorpus, TokenizerSpec, TokenizeSpec
from stages.corpora import documents, locate
from stages.tokenization import fast_encode, word_table
from stages.tokenization.fast_encode import TextEncoder, encode_stream
from stages.tokenization.separators import NMT_NFKC_SPACES, rule_spaces, word_rules
from stages.tokenization.tokenizer import train_tokenizer

LINES = [
    "It is the policy of the United States, and of the several States; $1,000,000 in 1850.",
    "Naïve café — “quoted” words… and ﬁne ½ measures of the policy",
    "the states the united the unit a an and 12 345 6",
] * 30
SPEC = TokenizeSpec(corpus=SotuCorpus())

# Spaces of every kind, characters that the normalisation drops, joins or expands, right-to-left and emoji,
# what looks like pieces.
NASTY = (
    "ab the\u2581 \t\n\v\f\r\x00\x01\x1c\x1f\x7f\x85\xa0\u1680"
    "\u2003\u200b\u200d\u200f\u2028\u202f\u205f\u3000\ufeff\ufffd\u0301\u0308"
    "éﬁ½¨´ﷺㄱ한漢\u1100\u1161שא🙂👩\U0001f3fd<s>_12"
)
TEXTS = (
    st.text(max_size=80)
    | st.text(alphabet=NASTY, max_size=80)
    | st.text(alphabet="ab \n▁\u0301", max_size=40)
    | st.text(alphabet="st1,;(. \u0301é", max_size=40)
)

FAST = {
    "ours": {},
    "dummy prefix": {"add_dummy_prefix": True},
    "nfkc_cf": {"normalization_rule_name": "nfkc_cf"},
    "no normalisation": {"normalization_rule_name": "identity"},
    "no piece for the space": {"required_chars": "", "character_coverage": 1.0},
    "digits together": {"split_digits": False},
    "letters beside punctuation": {"split_by_unicode_script": False, "split_by_number": False},
}
PLAIN = {
    "unigram": {"model_type": "unigram", "vocab_size": 310},
    "words may merge": {"split_by_whitespace": False},
    "space at the end of pieces": {"treat_whitespace_as_suffix": True},
    "spaces kept": {"remove_extra_whitespaces": False},
    "symbols of the user": {"user_defined_symbols": ["<sep>", "of the"]},
    "no byte fallback": {"byte_fallback": False, "vocab_size": 90},
}


def train(options: dict, lines: list[str] = LINES) -> bytes:
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 400,
        "byte_fallback": True,
        "split_digits": True,
        "add_dummy_prefix": False,
    }
    settings |= {
        "normalization_rule_name": "nmt_nfkc",
        "required_chars": "▁",
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **(settings | options)
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[TextEncoder, sentencepiece.SentencePieceProcessor]]:
    trained = {name: train(options) for name, options in (FAST | PLAIN).items()}
    return {
        name: (TextEncoder(model), sentencepiece.SentencePieceProcessor(model_proto=model))
        for name, model in trained.items()
    }


def assert_same(
    encoder: TextEncoder, tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> None:
    assert [ids.tolist() for ids in encoder.encode(texts)] == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("name", FAST)
def test_words_are_looked_up_where_no_merge_crosses_a_space(models, name):
    assert models[name][0].by_words


def test_words_are_cut_at_punctuation_where_no_piece_has_both() -> None:
    ours, mixed = (word_rules(train(FAST[name])) for name in ("ours", "letters beside punctuation"))
    assert ours is not None
    assert mixed is not None
    assert (ours.letters_stand_apart, mixed.letters_stand_apart) == (True, False)


@pytest.mark.parametrize("text", ["(e\u0301", "a=\u0338"])
def test_a_character_that_the_normalisation_composes_is_cut_off_from_no_piece(text: str) -> None:
    options = {"split_by_unicode_script": False, "vocab_size": 267}
    model = train(options, [f"x{text} y{text} z{text}"] * 40)
    encoder, tokenizer = TextEncoder(model), sentencepiece.SentencePieceProcessor(model_proto=model)
    assert any(len(tokenizer.id_to_piece(token)) == 2 for token in tokenizer.encode(f"x{text}"))
    assert_same(encoder, tokenizer, [f"x {text}", text])


@pytest.mark.parametrize("name", PLAIN)
def test_whole_texts_are_encoded_where_words_are_not_independent(models, name):
    assert not models[name][0].by_words


@pytest.mark.parametrize("name", FAST | PLAIN)
@given(texts=st.lists(TEXTS, max_size=4))
@example([])
@example([" \n\t ", "", "a", " "])
@example(["(the,states)1850; the", "states;s s;(\u0301 é,é (é"])
@example(["\u200b \u200b the states", "\v the\x85states\x1cunited \v"])
@example([" ▁ a▁▁b \u0301c \u00a0\u0308d e\0\u0301", "the states"])
def test_ids_are_sentencepieces_own(models, name, texts):
    assert_same(*models[name], texts)


@given(text=st.text(alphabet="abthe \n\v\u2003é", min_size=1, max_size=60))
def test_a_long_text_is_cut_into_slices_without_a_trace(models, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_encode, "_BATCH_CHARACTERS", 7)
        assert_same(*models["ours"], [text])


@pytest.mark.parametrize("name", FAST | PLAIN)
@given(text=TEXTS)
@example("  a \u200b b ▁ c ")
def test_the_size_of_the_normalised_text_does_not_depend_on_the_cuts(models, name, text):
    encoder, tokenizer = models[name]
    expected = len(tokenizer.normalize(text).removeprefix("▁").replace("▁", " ").encode())
    assert encoder.normalized_size(text) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_encode, "_BATCH_CHARACTERS", 5)
        assert encoder.normalized_size(text) == expected


def test_a_full_table_of_words_is_emptied_and_filled_again(models, monkeypatch):
    monkeypatch.setattr(word_table, "_MAX_ROWS", 3)
    for text in LINES[:3] * 3:
        assert_same(*models["ours"], [text])


def test_the_known_rules_separate_words_where_the_model_says_so():
    model = train({})
    assert rule_spaces(model) == NMT_NFKC_SPACES
    rules = sentencepiece.SentencePieceNormalizer(model_proto=model).decompile()
    assert not [
        source
        for source, _ in rules
        if source.isascii() and any("!" <= character <= "~" for character in source)
    ]


def test_text_that_writes_out_control_pieces_makes_none(models):
    encoder, _ = models["ours"]
    assert not {0, 1, 2, 3} & set(encoder.encode(["<s> </s> <unk> <pad> <0x41>"])[0].tolist())


@pytest.fixture(scope="module")
def corpus_model() -> bytes:
    return train_tokenizer(TokenizerSpec(), documents(SPEC.corpus, locate(SPEC)))


def test_every_tenth_address_of_the_corpus_is_encoded_the_same(corpus_model):
    compare_corpus(corpus_model, step=10)


@pytest.mark.slow
def test_the_whole_corpus_is_encoded_the_same(corpus_model):
    compare_corpus(corpus_model, step=1)


def compare_corpus(model: bytes, step: int) -> None:
    encoder, tokenizer = TextEncoder(model), sentencepiece.SentencePieceProcessor(model_proto=model)
    assert_same(encoder, tokenizer, list(documents(SPEC.corpus, locate(SPEC)))[::step])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_stream_comes_back_in_order_from_any_number_of_threads(monkeypatch, num_threads):
    monkeypatch.setattr(fast_encode, "_BATCH_CHARACTERS", 200)
    model = train({})
    texts = [f"{line} {number} 🙂\0" * (number % 3) for number, line in enumerate(LINES)]
    pairs = list(encode_stream(iter(texts), model, num_threads))
    assert [text for text, _ in pairs] == texts
    assert [ids.tolist() for _, ids in pairs] == sentencepiece.SentencePieceProcessor(
        model_proto=model
    ).encode(texts)


def test_a_stream_reads_only_a_little_ahead_and_can_be_left_early(monkeypatch):
    monkeypatch.setattr(fast_encode, "_BATCH_CHARACTERS", 50)
    taken = itertools.count()
    stream = encode_stream((LINES[next(taken) % 3] for _ in range(10**9)), train({}), 2)
    next(stream)
    stream.close()
    assert next(taken) < 20


def test_an_error_of_the_source_comes_through(monkeypatch):
    def broken():
        yield from LINES
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(encode_stream(broken(), train({}), 2))
