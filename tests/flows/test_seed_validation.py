"""The ledger's rules around training, with a stand-in for the chain (tests/server trains real seeds)."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.states import Completed, Failed

from flows import seed_validation as module
from flows.results.seeds import conclusions
from flows.seed_validation import seed_validation
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError, StageError
from schemas.runtime import RunOptions
from stages.seeds.ledger import find_ledger
from stages.store.machine import machine_kind
from stages.store.runs import save_report

Fire = Callable[..., Any]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, smoke_run: Any) -> dict[int, float | str]:
    """Seed -> its loss, or the message with which it fails. Seeds that are not named get 2 + seed / 100."""
    plan: dict[int, float | str] = {}

    def chain(preset: str, overrides: tuple[str, ...], options: RunOptions, return_state: bool) -> Any:
        seed, run_id = int(overrides[-1].partition("=")[2]), uuid.uuid4()
        outcome = plan.get(seed, 2 + seed / 100)
        state = Failed(message=outcome) if isinstance(outcome, str) else Completed()
        state.state_details.flow_run_id = run_id
        if not isinstance(outcome, str):
            report = smoke_run.report
            sliding = report.evaluation.sliding.derive(loss=outcome)
            save_report(
                Path(options.store),
                report.derive(run_id=str(run_id), evaluation=report.evaluation.derive(sliding=sliding)),
            )
        return state

    monkeypatch.setattr(module, "pipeline", chain)
    return plan


@pytest.fixture
def fire(api: str, tmp_path: Path) -> Fire:
    return lambda **asked: seed_validation(
        "smoke", options=RunOptions(store=str(tmp_path)), return_state=True, **asked
    )


def test_each_firing_trains_the_next_seed_and_never_the_same_one(
    fire: Fire, trained: Any, tmp_path: Path
) -> None:
    for count in (1, 2, 3):
        book, _ = fire(max_seeds=3).result()
        assert [entry.seed for entry in book.completed()] == list(range(1, count + 1))
    again, _ = fire(max_seeds=3).result()
    assert again == book == find_ledger(tmp_path, "smoke")


def test_a_failed_seed_is_kept_shown_and_tried_again(fire: Fire, trained: Any, tmp_path: Path) -> None:
    trained[1] = "the loss diverged"
    state = fire()
    with pytest.raises(StageError, match="seed 1: the loss diverged"):
        state.result()
    assert find_ledger(tmp_path, "smoke").entries[0].error == "the loss diverged"
    del trained[1]
    book, said = fire().result()
    assert [(entry.seed, entry.status, entry.tries) for entry in book.entries] == [
        (1, "completed", 2),
        (2, "completed", 1),
    ]
    assert "failed, to be retried: none" in said[0]


def test_a_seed_of_another_kind_of_machine_is_not_checked_here_but_named(
    fire: Fire, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine_kind(ComputeSettings())
    monkeypatch.setattr(module, "machine_kind", lambda compute: "another kind")
    fire().result()
    monkeypatch.setattr(module, "machine_kind", machine_kind)
    with pytest.raises(
        SpecError,
        match=r"recheck_seed = 1: was trained on another kind of machine \(another kind\) than this one",
    ):
        fire(recheck_seed=1).result()
    book, said = fire().result()
    assert [entry.machine for entry in book.completed()] == ["another kind", here]
    assert find_ledger(tmp_path, "smoke") == book
    [line] = [line for line in said if "more than one kind of machine" in line]
    assert f"another kind (seed 1); {here} (seed 2)" in line


def test_a_new_ledger_beside_one_of_its_name_is_said(
    fire: Fire, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = fire().result()
    assert "is new" not in caplog.text
    second, _ = fire(
        overrides=("train.compute.precision=float32", "evaluate.compute.precision=bfloat16")
    ).result()
    assert (
        f"ledger {second.label} is new. Of its name there are {first.label}, of other settings" in caplog.text
    )
    assert "here it is float32" in caplog.text


def test_a_recheck_that_gives_other_figures_fails_loudly(fire: Fire, trained: Any) -> None:
    fire().result()
    checked, _ = fire(recheck_seed=1).result()
    assert checked.entries[0].rechecked_at
    assert len(checked.entries) == 1
    trained[1] = 2.0100001
    with pytest.raises(
        StageError,
        match=r"seed 1 .* is not reproducible \(the same code\): val_loss_nats was 2.01, is 2.0100001",
    ):
        fire(recheck_seed=1).result()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"recheck_seed": 5}, "recheck_seed = 5: not a completed seed .* completed: 1"),
        ({"max_seeds": 11}, "max_seeds = 11: .* declared with 10"),
        ({"overrides": ("train.seed=3",)}, r"train\.seed = 3: .* use first_seed"),
        ({"against": "other"}, "against = other: no such ledger"),
        (
            {"ledger": "gpu", "overrides": ("train.compute.device=cuda",), "recheck_seed": 1},
            "not a completed seed",
        ),
    ],
)
def test_what_would_spoil_a_ledger_is_refused(fire: Fire, trained: Any, asked: dict, named: str) -> None:
    fire().result()
    with pytest.raises(SpecError, match=named):
        fire(**asked).result()


def test_the_verdict_against_a_mark_and_against_a_ledger(fire: Fire, trained: Any, tmp_path: Path) -> None:
    trained.update({1: 2.500, 2: 2.501, 3: 2.499, 11: 2.600, 12: 2.601, 13: 2.599})
    _, said = fire(new_seeds_per_run=3, mark_nats=2.51).result()
    text = " ".join(said)
    for part in (
        "Mean 2.50000",
        "deviation 0.00100",
        "0.01000 nats better",
        "margin is 0.005",
        "**beaten**",
        "test 2 of at most 9",
    ):
        assert part in text
    for part in (
        "bytes a token: mark",
        "95 % interval",
        "Power: with a standard deviation of 0.00100 nats, a true difference of 0.005 nats",
    ):
        assert part in text
    assert "**not beaten**" in " ".join(fire(new_seeds_per_run=0, mark_nats=2.504).result()[1])
    fire(ledger="slower", first_seed=11, new_seeds_per_run=3).result()
    text = " ".join(fire(new_seeds_per_run=0, against="slower").result()[1])
    assert "Welch" in text
    assert "**beaten**" in text
    assert "No verdict" in " ".join(conclusions(find_ledger(tmp_path, "slower"), None, None, 0.005, 0.01))
