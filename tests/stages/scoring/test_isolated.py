"""Scores that a script left are looked at before they count."""

import json
import math
from pathlib import Path

import pytest

from schemas.errors import StageError
from stages.scoring.isolated import read_scores

SCORE = {
    "bpb": 1.0,
    "loss": 1.0,
    "nll_nats_sum": 1.0,
    "num_targets": 1,
    "num_bytes": 1,
    "num_bos_targets": 0,
    "bos_nats_sum": 0.0,
}


def test_a_score_that_is_not_finite_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(
        json.dumps({"non_overlapping": {**SCORE, "seconds": 1.0, "bpb": math.nan}, "sliding": None})
    )
    with pytest.raises(
        StageError,
        match=r"scores\.json: the script left scores that are none: Score\.bpb = nan: .*finite number",
    ):
        read_scores(path)
