"""Scores that a script left are looked at before they count."""

import json
import math
from pathlib import Path

import pytest

from schemas.errors import SpecError, StageError
from stages.scoring.isolated import check_isolated, read_scores

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


def test_a_package_that_only_pythonpath_names_is_missed_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install --target` and clusters' modules work so."""
    (tmp_path / "beside_python.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check_isolated()
    with pytest.raises(
        SpecError, match=r"-I, which ignores PYTHONPATH and does not find beside_python: inst"
    ):
        check_isolated(["torch", "beside_python"])
