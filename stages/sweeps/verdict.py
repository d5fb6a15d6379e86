"""Test that decides whether the best trial of a sweep is announced: Welch's, with seeds that no trial had.

The best of many trials is partly luck of its seed. So that seed does not count in the test.
"""

from collections.abc import Sequence

from schemas.sweep import Confirmation, ObjectiveName, Sweep, SweepTrial
from stages.seeds.statistics import MIN_SEEDS, beats_ledger, seeds_needed, summarize

FIGURE_NAMES: dict[ObjectiveName, str] = {"val_bpb": "bits per byte", "bytes": "bytes"}


def candidate(sweep: Sweep) -> SweepTrial | None:
    """The trial that is tested against the base; None where no trial was better with its own seed.

    With one objective it is the best one. With two it is the one of the lowest val_bpb among those that have
    no more bytes than the base.
    """
    main, *others = sweep.objectives
    found = [
        trial
        for trial in sweep.complete()
        if trial.figure(main) < sweep.base.figure(main)
        and all(trial.figure(name) <= sweep.base.figure(name) for name in others)
    ]
    return min(found, key=lambda trial: trial.figure(main), default=None)


def fresh_seeds(seed: int, count: int) -> tuple[int, ...]:
    """The `count` seeds after that of the trials."""
    return tuple(range(seed + 1, seed + 1 + count))


def confirm(
    sweep: Sweep,
    trial: SweepTrial,
    runs: Sequence[SweepTrial],
    base_runs: Sequence[SweepTrial],
    alpha: float,
    seeds: Sequence[int],
) -> Confirmation:
    """One-sided Welch test of "the mean of `runs` is below that of `base_runs`", a run for each of `seeds`.

    Raises ValueError for fewer than two runs of either, and for a run without figures.
    """
    main = sweep.objectives[0]
    ours, theirs = [run.figure(main) for run in runs], [run.figure(main) for run in base_runs]
    comparison = beats_ledger(ours, theirs, 0.0, alpha, 1)
    if comparison is None:
        raise ValueError(f"{len(ours)} and {len(theirs)} runs: a test needs {MIN_SEEDS} of each")
    return Confirmation(
        trial=trial.number,
        objective=main,
        seeds=tuple(seeds),
        base_runs=tuple(run.run_id for run in base_runs),
        trial_runs=tuple(run.run_id for run in runs),
        figures=tuple(ours),
        base_figures=tuple(theirs),
        comparison=comparison,
    )


def power_note(confirmation: Confirmation) -> str:
    """How many seeds of each would show a true difference of the measured size; empty where it is no gain."""
    comparison = confirmation.comparison
    spreads = [summarize(values) for values in (confirmation.figures, confirmation.base_figures)]
    variance = sum(spread.std**2 for spread in spreads if spread) / len(spreads)
    if comparison.better_by <= 0 or variance == 0:
        return ""
    needed = seeds_needed(comparison.better_by, variance**0.5, comparison.alpha, samples=2)
    return f"A true difference of this size needs {needed or 'more than 10,000'} seeds of each."
