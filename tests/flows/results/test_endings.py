"""What a message says about the end of a run."""

import pytest

from flows.results.endings import FAILED, FINISHED, OVER_LIMIT, ending, reason

FIGURES = {
    "fairway.val_bpb": 1.50228,
    "fairway.bytes": 1_331_003,
    "fairway.limit_bytes": 16_000_000,
    "fairway.report": "http://127.0.0.1:4201/a/report.html",
    "prefect.flow.id": "of no interest",
}


def test_a_finished_run_gives_score_bytes_and_report() -> None:
    end = ending("demo-seed1", True, "All states completed.", {**FIGURES, "fairway.stage": "publish"})
    assert (end.event, end.subject) == (FINISHED, "Fairway: demo-seed1 finished")
    assert end.text == (
        "val_bpb: 1.50228\nBytes: 1,331,003 of 16,000,000\nReport: http://127.0.0.1:4201/a/report.html"
    )
    assert end.payload["bytes"] == 1_331_003


def test_a_failed_run_gives_stage_and_reason() -> None:
    said = "Flow run encountered an exception: StageError: the loss diverged at step 7"
    end = ending("demo-seed1", False, said, {"fairway.stage": "train"})
    assert (end.event, end.subject) == (FAILED, "Fairway: demo-seed1 failed")
    assert end.text == "Stage: train\nthe loss diverged at step 7"


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ("int4: Flow run encountered an exception: SpecError: bits = int4: no", "int4: bits = int4: no"),
        (
            "Flow run encountered an exception: StageError: 4: Task run encountered an exception KeyError: 5",
            "4: KeyError: 5",
        ),
        ("Task run encountered an exception StageError: the loss diverged", "the loss diverged"),
        ("Flow run encountered an exception: KeyError: 'loss'", "KeyError: 'loss'"),
        (None, ""),
    ],
)
def test_prefects_words_are_taken_away_wherever_they_stand(message: str | None, left: str) -> None:
    """The class of an error that is not ours stays: it says what happened."""
    assert reason(message) == left


def test_a_run_over_its_limit_is_no_failed_one() -> None:
    labels = {**FIGURES, "fairway.limit_bytes": 1_000_000, "fairway.stage": "publish"}
    end = ending("demo-seed1", False, "StageError: over the limit by 331,003 bytes", labels)
    assert (end.event, end.subject) == (OVER_LIMIT, "Fairway: demo-seed1 is over the limit")
    assert end.text.startswith("StageError: over the limit by 331,003 bytes\nval_bpb: 1.50228\n")


def test_a_result_in_words_stands_in_the_message() -> None:
    assert ending("smoke-seeds", True, "", {"fairway.result": "Mean 2.9 nats."}).text == "Mean 2.9 nats."


def test_a_run_that_failed_before_its_first_stage_gives_the_reason_alone() -> None:
    assert ending("demo-refused", False, "SpecError: train.seed = x", {}).text == "SpecError: train.seed = x"
