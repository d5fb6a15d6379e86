"""Work of each stage, in a unit by which two runs of the stage compare."""

from dataclasses import dataclass

from schemas.pipeline import PipelineSpec
from schemas.quantizer_settings import CalibratedSettings
from schemas.scoring_settings import ScoringSettings
from schemas.tokenize_corpus import (
    CorpusManifest,
    FirstDocuments,
    ShardsCorpus,
    TokenizedCorpus,
    TokenizeSpec,
)
from stages.planning.counts import (
    count_parameters,
    learning_operations,
    long_context_operations,
    scored_tokens,
    scoring_operations,
    training_operations,
)

_BYTES_A_TOKEN = 0.27
"""Bytes of text a token for each bit of the vocabulary: 2.7 for 1,024 pieces of English."""
_ASSUMED_VAL_SHARE = 0.05
_GAP_PASSES, _PROBE_PASSES, _PROBE_TOKENS = 9, 48, 4_096
_WRITTEN_TOKENS = 2 * 48 * 3 * 64
"""Tokens that both models read for the texts in the report: steps, texts, and their mean length."""


@dataclass(frozen=True)
class Work:
    """The work of one stage in a unit of its own, by which only results of that stage compare: operations of
    `train`, `merge` and `evaluate`, bytes of text, parameters.
    """

    amount: float
    most_seconds: float | None = None
    """What the growing part takes at most, as train.schedule.max_seconds says."""


@dataclass(frozen=True)
class TextSize:
    """Bytes of text, and tokens of the two splits."""

    num_bytes: int
    train_tokens: int
    val_tokens: int


def text_size(spec: TokenizeSpec, manifest: CorpusManifest, tokenized: TokenizedCorpus | None) -> TextSize:
    """As counted, or estimated from the bytes where the text is not tokenized yet."""
    num_bytes = sum(file.num_bytes for file in manifest.files)
    if tokenized is not None:
        return TextSize(num_bytes, tokenized.train.num_tokens, tokenized.val.num_tokens)
    if isinstance(spec.corpus, ShardsCorpus):
        val = sum(file.num_bytes for file in manifest.files if "_val_" in file.path) // 2
        return TextSize(num_bytes, max(num_bytes // 2 - val, 1), max(val, 2))
    tokens = round(num_bytes / (_BYTES_A_TOKEN * spec.tokenizer.vocab_size.bit_length()))
    share = _ASSUMED_VAL_SHARE if isinstance(spec.split, FirstDocuments) else spec.split.val_fraction
    val = max(2, round(tokens * share))
    return TextSize(num_bytes, max(tokens - val, 1), val)


def counted_size(tokenized: TokenizedCorpus) -> TextSize:
    """The size of a text that was tokenized in an earlier run; of ready-made shards two bytes a token."""
    train, val = tokenized.train, tokenized.val
    known = train.utf8_bytes is not None and val.utf8_bytes is not None
    text = (train.utf8_bytes or 0) + (val.utf8_bytes or 0)
    num_bytes = text if known else 2 * (train.num_tokens + val.num_tokens)
    return TextSize(num_bytes, train.num_tokens, val.num_tokens)


def num_windows(val_tokens: int, scoring: ScoringSettings, stride: int) -> int:
    """Windows `stride` apart over the validation split; 0 for the stride 0."""
    if not stride:
        return 0
    return scored_tokens(val_tokens, scoring, stride) // min(scoring.sequence_length, val_tokens)


def audited_tokens(spec: PipelineSpec) -> int:
    """Tokens that the audit predicts in float32, about."""
    return _GAP_PASSES * spec.audit.gap_tokens + _PROBE_PASSES * _PROBE_TOKENS + _WRITTEN_TOKENS


def work_of(stage: str, spec: PipelineSpec, size: TextSize, train_tokens: int | None = None) -> Work:
    """The work of the stage. `train_tokens`: what training has seen; None: all that the settings allow."""
    model, parameters = spec.train.model, count_parameters(spec.train.model).total
    if stage == "tokenize_corpus":
        return Work(size.num_bytes)
    if stage == "train":
        schedule = spec.train.schedule
        tokens = train_tokens or schedule.max_steps * spec.train.data.batch_tokens
        return Work(training_operations(spec.train, tokens), schedule.step_seconds)
    if stage == "merge":
        scoring = spec.merge.scoring
        return Work(2 * scoring_operations(model, size.val_tokens, scoring, scoring.sequence_length))
    if stage == "evaluate":
        scoring = spec.evaluate.scoring
        plain = scoring_operations(model, size.val_tokens, scoring, scoring.sequence_length)
        plain += long_context_operations(model, size.val_tokens, scoring)
        lora = spec.evaluate.test_time_training
        return Work(plain + learning_operations(model, size.val_tokens, scoring, lora))
    if stage == "audit":
        return Work(parameters * audited_tokens(spec))
    if stage == "quantize" and isinstance(spec.quantize, CalibratedSettings):
        calibration = spec.quantize.calibration
        return Work(parameters * (calibration.num_sequences or 128) * calibration.sequence_length)
    return Work(parameters)
