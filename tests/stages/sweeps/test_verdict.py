"""What is announced of a sweep: a real gain, and of pure noise nothing."""

from pathlib import Path

import numpy as np
import pytest

from schemas.sweep import Range, Sweep, SweepTrial
from stages.sweeps.search import SearchSettings, open_search
from stages.sweeps.verdict import candidate, confirm, fresh_seeds, power_note

RATE = Range(settings=("train.optimizer.muon_lr",), low=0.001, high=1.0, log=True)
NOISE = 0.002
"""Standard deviation of val_bpb between seeds, about that of `demo`."""


def trial(number: int, bpb: float, size: int = 1000, state: str = "complete") -> SweepTrial:
    return SweepTrial.model_validate(
        {"number": number, "state": state, "values": ("0.1",), "val_bpb": bpb, "num_bytes": size}
    )


def sweep(trials: list[SweepTrial], base: SweepTrial, *objectives: str) -> Sweep:
    return Sweep.model_validate(
        {
            "label": "demo-1",
            "preset": "demo",
            "objectives": objectives or ("val_bpb",),
            "seed": 0,
            "variations": (RATE,),
            "base": base,
            "trials": trials,
            "front": (),
        }
    )


def announces(found: Sweep, gain: float, generator: np.random.Generator) -> bool:
    """Whether the best trial is announced whose true gain is `gain`, by three further seeds of each."""
    best = candidate(found)
    if best is None:
        return False
    ours, theirs = (
        [trial(0, 1.5 - better + NOISE * value) for value in generator.standard_normal(3)]
        for better in (gain, 0.0)
    )
    return confirm(found, best, ours, theirs, 0.05, fresh_seeds(1337, 3)).passed


def test_of_pure_noise_nothing_is_announced_in_19_of_20_sweeps(tmp_path: Path) -> None:
    """Whole searches: the best of six trials always looks better than the base."""
    announced = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        base = trial(0, 1.5 + NOISE)
        with open_search(
            tmp_path / str(seed), SearchSettings("noise", (RATE,), ("val_bpb",), seed)
        ) as search:
            while (asked := search.ask(6)) is not None:
                noisy = trial(asked.number, 1.5 + NOISE * generator.standard_normal())
                search.tell(asked, noisy.derive(values=asked.values))
            found = sweep(search.trials(), base)
        assert candidate(found) is not None
        announced += announces(found, 0.0, generator)
    assert announced <= 1


def test_false_alarms_stay_below_alpha_and_real_gains_are_found() -> None:
    generator = np.random.default_rng(0)
    found = sweep([trial(0, 1.4)], trial(0, 1.5))
    false = sum(announces(found, 0.0, generator) for _ in range(200)) / 200
    true = sum(announces(found, 5 * NOISE, generator) for _ in range(40)) / 40
    assert false <= 0.05
    assert true >= 0.95


def test_the_candidate_is_better_than_the_base_in_every_figure() -> None:
    base = trial(0, 1.5, 1000)
    trials = [trial(0, 1.3, 1200), trial(1, 1.4, 1000), trial(2, 1.45, 500), trial(3, 1.2, 900, "failed")]
    assert [found.number for found in [candidate(sweep(trials, base))] if found] == [0]
    assert [found.number for found in [candidate(sweep(trials, base, "val_bpb", "bytes"))] if found] == [1]
    assert [found.number for found in [candidate(sweep(trials, base, "bytes"))] if found] == [2]
    assert candidate(sweep([trial(0, 1.5), trial(1, 1.6)], base)) is None


def test_the_seeds_of_the_trials_do_not_count_in_the_test() -> None:
    assert 1337 not in fresh_seeds(1337, 3)
    found = sweep([trial(0, 1.4)], trial(0, 1.5))
    runs = [trial(0, value) for value in (1.499, 1.501, 1.502)]
    test = confirm(found, found.trials[0], runs, runs[::-1], 0.05, fresh_seeds(1337, 3))
    assert test.seeds == (1338, 1339, 1340)
    assert not test.passed
    assert power_note(test) == ""
    slightly = confirm(
        found, found.trials[0], [trial(0, x.val_bpb - 0.001) for x in runs], runs, 0.05, (1, 2, 3)
    )
    assert "needs 30 seeds" in power_note(slightly)


def test_one_seed_is_no_test() -> None:
    found = sweep([trial(0, 1.4)], trial(0, 1.5))
    with pytest.raises(ValueError, match="a test needs 2 of each"):
        confirm(found, found.trials[0], [trial(0, 1.4)], [trial(0, 1.5)], 0.05, (1,))
