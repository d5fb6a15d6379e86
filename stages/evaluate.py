"""Evaluate: score what ships. By hand: python -m stages.evaluate --spec spec.json --input package=… --input tokenized=…

The packaged script itself does it, isolated (`python -I`) and in fresh torchrun processes, so nothing of the training run
or of this repository can leak into the score.
"""

import glob
import json
import os
import shutil

from schemas.errors import StageError
from schemas.evaluate import EvaluateSpec, Evaluation, Score
from schemas.package import Package
from schemas.tokenize_corpus import TokenizedCorpus
from stages.launch import run_torchrun
from stages.workspace import Workspace


def evaluate(spec: EvaluateSpec, package: Package, tokenized: TokenizedCorpus, work: Workspace) -> Evaluation:
    """bpb of the packaged blob on the validation split, non-overlapping and sliding.

    Raises StageError when the scored tokens do not stand for as many bytes as the validation text has.
    """
    work.read(package.blob)
    shards = [work.read(ref) for ref in tokenized.val_shards]
    empty = work.out_dir / "empty"
    empty.mkdir(exist_ok=True)
    links = work.out_dir / "val"
    links.mkdir(exist_ok=True)
    for index, shard in enumerate(shards):
        (links / f"val_{index:06d}.bin").unlink(missing_ok=True)
        (links / f"val_{index:06d}.bin").symlink_to(shard)
    scores_path = work.out_dir / "scores.json"
    command = [
        "-I",
        str(work.read(package.script)),
        "--eval",
        f"--val={glob.escape(str(links))}/val_*.bin",
        f"--tokenizer={work.read(tokenized.tokenizer)}",
        f"--sequence-length={spec.scoring.sequence_length}",
        f"--stride={spec.scoring.stride}",
        f"--batch-tokens={spec.scoring.batch_tokens}",
        f"--device={spec.compute.device}",
        f"--precision={spec.compute.precision}",
        f"--threads={spec.compute.threads_per_process}",
        f"--json={scores_path}",
        "--progress",
    ]
    isolated = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    run_torchrun(command, work.out_dir, spec.compute, work.progress, work.runtime.stage_timeout_seconds, env=isolated, cwd=empty)
    scores = json.loads(scores_path.read_text(encoding="utf-8"))
    for used in (empty, links):
        shutil.rmtree(used)
    non_overlapping = Score(**scores["non_overlapping"])
    return Evaluation(
        non_overlapping=non_overlapping,
        sliding=Score(**scores["sliding"]) if scores["sliding"] else None,
        text_utf8_bytes=tokenized.val.utf8_bytes,
        text_normalized_bytes=tokenized.val.normalized_utf8_bytes,
        byte_account=_account(non_overlapping.num_bytes, tokenized),
    )


def _account(token_bytes: int, tokenized: TokenizedCorpus) -> str:
    """How the denominator compares with the text, in words."""
    raw, normalized = tokenized.val.utf8_bytes, tokenized.val.normalized_utf8_bytes
    if normalized is None or raw is None:
        return f"{token_bytes:,} bytes by the token table; the text itself is not known (ready-made shards)"
    if token_bytes != normalized:
        raise StageError(
            f"the scored tokens stand for {token_bytes:,} bytes, the normalised validation text has {normalized:,}: "
            "bits per byte would be wrong. The tokenizer or its byte table does not fit the shards"
        )
    return f"{token_bytes:,} bytes by the token table = the normalised text; {raw:,} before normalisation ({(normalized - raw) / raw:+.2%})"


if __name__ == "__main__":
    from stages.by_hand import main

    main("evaluate")
