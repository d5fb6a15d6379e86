"""Evaluate: score the package.

    python -m stages evaluate --spec spec.json --input package=… --input tokenized=…

The packaged script itself does it, isolated (`python -I`) and in fresh processes, so nothing of the training
run or of this repository can leak into the score.
"""

import json
from dataclasses import asdict

from schemas.errors import SpecError, StageError
from schemas.evaluate import EvaluateSpec, Evaluation
from schemas.package import LORA_MODULE, Package
from schemas.tokenize_corpus import TokenizedCorpus
from stages.scoring.isolated import score_isolated
from stages.store.workspace import Workspace


def evaluate(spec: EvaluateSpec, package: Package, tokenized: TokenizedCorpus, work: Workspace) -> Evaluation:
    """bpb of the packaged blob on the validation split, non-overlapping and sliding, and with test-time
    training where that is on.

    Raises SpecError where it is on and the program has no code for it, StageError when the scored tokens do
    not stand for as many bytes as the validation text has.
    """
    learning = _learning_options(spec, package)
    work.read(package.blob)
    shards = [work.read(ref) for ref in tokenized.val_shards]
    scores = score_isolated(
        work.read(package.script),
        shards,
        work.read(tokenized.tokenizer),
        spec.scoring,
        spec.compute,
        work.out_dir,
        work.progress,
        work.runtime.stage_timeout_seconds,
        learning,
    )
    return Evaluation(
        non_overlapping=scores.non_overlapping,
        sliding=scores.sliding,
        test_time_training=scores.test_time_training,
        text_utf8_bytes=tokenized.val.utf8_bytes,
        text_normalized_bytes=tokenized.val.normalized_utf8_bytes,
        byte_account=_account(scores.non_overlapping.num_bytes, tokenized),
    )


def _learning_options(spec: EvaluateSpec, package: Package) -> list[str]:
    """What switches test-time training on or off in a program that has it; nothing in any other."""
    settings, has_it = spec.test_time_training, LORA_MODULE in package.modules
    if settings.on and not has_it:
        raise SpecError(
            "evaluate.test_time_training.on = true: the package was made without its code; make it again by "
            "a run with that setting"
        )
    if not has_it:
        return []
    return [f"--test-time-training={json.dumps(asdict(settings)) if settings.on else 'off'}"]


def _account(token_bytes: int, tokenized: TokenizedCorpus) -> str:
    """How the denominator compares with the text, in words."""
    raw, normalized = tokenized.val.utf8_bytes, tokenized.val.normalized_utf8_bytes
    if normalized is None or raw is None:
        return f"{token_bytes:,} bytes by the token table; the text itself is not known (ready-made shards)"
    if token_bytes != normalized:
        raise StageError(
            f"the scored tokens stand for {token_bytes:,} bytes, the normalised validation text has "
            f"{normalized:,}: bits per byte would be wrong. The tokenizer or its byte table does not fit the "
            "shards"
        )
    return (
        f"{token_bytes:,} bytes by the token table = the normalised text; {raw:,} before "
        f"normalisation ({(normalized - raw) / raw:+.2%})"
    )
