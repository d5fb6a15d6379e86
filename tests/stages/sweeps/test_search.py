"""What the search promises: the same suggestions, nothing repeated after a kill, optima found, noise not."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from schemas.errors import SpecError
from schemas.sweep import Choices, ObjectiveName, Range, SweepTrial, Variation
from stages.sweeps.search import JOURNAL_NAME, Asked, SearchSettings, open_search

RATE = Range(settings=("train.optimizer.muon_lr",), low=0.001, high=1.0, log=True)
LAYERS = Choices(settings=("train.model.num_layers",), values=("4", "6", "8"))
HEADS = Range(settings=("train.model.num_heads",), low=2, high=8, step=2, whole=True)
BOTH: tuple[ObjectiveName, ...] = ("val_bpb", "bytes")

Evaluate = Callable[[Sequence[str]], tuple[float, int]]


def planted(values: Sequence[str]) -> tuple[float, int]:
    """The lowest score is at a learning rate of 0.03 with six layers; more layers take more bytes."""
    rate, layers = float(values[0]), int(values[1])
    return 1.5 + (math.log10(rate / 0.03)) ** 2 + 0.1 * (layers != 6), 1000 * layers


def settings(
    seed: int = 1,
    variations: tuple[Variation, ...] = (RATE, LAYERS),
    objectives: tuple[ObjectiveName, ...] = ("val_bpb",),
) -> SearchSettings:
    return SearchSettings("demo-1234", variations, objectives, seed)


def outcome(asked: Asked, evaluate: Evaluate) -> SweepTrial:
    bpb, size = evaluate(asked.values)
    return SweepTrial(
        number=asked.number, state="complete", values=asked.values, val_bpb=bpb, num_bytes=size, run_id="r"
    )


def search(
    folder: Path, given: SearchSettings, trials: int, evaluate: Evaluate = planted, dies_in: int | None = None
) -> list[SweepTrial]:
    """The trials after `trials` of them; a process that dies in one has asked for it and tells nothing."""
    with open_search(folder, given) as found:
        while (asked := found.ask(trials)) is not None:
            if asked.number == dies_in:
                break
            found.tell(asked, outcome(asked, evaluate))
        return found.trials()


@pytest.mark.parametrize("objectives", [("val_bpb",), BOTH])
def test_a_killed_search_repeats_no_trial_and_suggests_what_it_would_have(
    tmp_path: Path, objectives: tuple[ObjectiveName, ...]
) -> None:
    given = settings(objectives=objectives)
    whole = search(tmp_path / "whole", given, 10)
    for dies_in in (0, 9):
        assert len(search(tmp_path / "killed", given, 10, dies_in=dies_in)) == dies_in
    resumed: list[Sequence[str]] = []

    def told(values: Sequence[str]) -> tuple[float, int]:
        resumed.append(values)
        return planted(values)

    assert search(tmp_path / "killed", given, 10, told) == whole
    assert len(resumed) == 1
    assert search(tmp_path / "other", settings(seed=2, objectives=objectives), 10) != whole


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    assert search(tmp_path / "a", settings(), 6) == search(tmp_path / "b", settings(), 12)[:6]
    assert search(tmp_path / "a", settings(), 12) == search(tmp_path / "b", settings(), 12)


def test_a_planted_optimum_is_found_in_thirty_trials(tmp_path: Path) -> None:
    for seed in range(2):
        trials = search(tmp_path / str(seed), settings(seed), 30)
        best = min(trials, key=lambda trial: trial.figure("val_bpb"))
        assert best.values[1] == "6"
        assert 0.02 < float(best.values[0]) < 0.045


def test_score_against_bytes_gives_the_trials_that_no_other_beats(tmp_path: Path) -> None:
    given = settings(objectives=BOTH)
    trials = search(tmp_path, given, 24)
    with open_search(tmp_path, given) as found:
        front = [trial for trial in trials if trial.number in found.front()]
    points = [(trial.figure("val_bpb"), trial.figure("bytes")) for trial in trials]
    for trial in front:
        mine = trial.figure("val_bpb"), trial.figure("bytes")
        assert not [other for other in points if other != mine and all(map(float.__le__, other, mine))]
    assert {trial.values[1] for trial in front} <= {"4", "6"}


def test_a_small_list_of_values_is_tried_whole_and_once(tmp_path: Path) -> None:
    given = settings(
        variations=(LAYERS, Choices(settings=("train.model.smear_gate",), values=("true", "false")))
    )
    assert len(search(tmp_path, given, 3, lambda values: (1.0, 1))) == 3
    trials = search(tmp_path, given, 20, lambda values: (1.0, 1))
    assert len(trials) >= len({trial.values for trial in trials}) == 6


def test_steps_and_integers_stay_in_their_range(tmp_path: Path) -> None:
    trials = search(tmp_path, settings(variations=(HEADS, RATE)), 12, lambda values: (float(values[0]), 1))
    assert {trial.values[0] for trial in trials} <= {"2", "4", "6", "8"}
    assert all(0.001 <= float(trial.values[1]) <= 1 and len(trial.values[1]) <= 9 for trial in trials)


def test_a_failed_trial_is_not_the_end_and_not_repeated(tmp_path: Path) -> None:
    with open_search(tmp_path, settings()) as found:
        asked = found.ask(3)
        assert asked is not None
        found.tell(
            asked, SweepTrial(number=0, state="failed", values=asked.values, reason="the loss diverged")
        )
    trials = search(tmp_path, settings(), 3)
    assert [trial.state for trial in trials] == ["failed", "complete", "complete"]
    assert trials[0].reason == "the loss diverged"


def test_half_a_line_is_cut_off_and_a_damaged_journal_is_named(tmp_path: Path) -> None:
    whole = search(tmp_path, settings(), 4)
    journal = tmp_path / JOURNAL_NAME
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    journal.with_name(f"{JOURNAL_NAME}.lock").touch()
    assert search(tmp_path, settings(), 4) == whole
    assert search(tmp_path, settings(), 5)[:4] == whole
    journal.write_bytes(journal.read_bytes().replace(b'"op_code":4', b'"op_code";4', 1))
    with pytest.raises(SpecError, match=r"journal\.jsonl: damaged .* Remove it"):
        search(tmp_path, settings(), 5)
