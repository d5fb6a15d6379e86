"""A sweep as rows, as CSV and as sentences.

It imports neither Prefect nor torch nor Optuna.
"""

import csv
import io

from flows.results.tables import Row
from schemas.sweep import ObjectiveName, Sweep, SweepTrial
from stages.report.rows import bpb
from stages.sweeps.verdict import FIGURE_NAMES, power_note

MOST_COMPARED = 4
"""Trials that the command for `fairway compare` names, beside the base."""
NOT_TESTED = "It had one seed, and the best of many trials is partly luck"


def sweep_rows(sweep: Sweep) -> list[Row]:
    """The base, then every trial in its order."""
    return [_row(sweep, "base", sweep.base), *(_row(sweep, str(item.number), item) for item in sweep.trials)]


def columns(sweep: Sweep) -> list[str]:
    """A column for each variation: the last part of its name, or the whole name where two would be alike."""
    short = [variation.short for variation in sweep.variations]
    return short if len(set(short)) == len(short) else [variation.name for variation in sweep.variations]


def csv_text(sweep: Sweep) -> str:
    """A head and a row for the base and each trial, comma-separated; numbers have all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [variation.name for variation in sweep.variations]
    writer.writerow(["trial", "state", *names, "val_bpb", "bytes", "run_id", "run_name", "reason"])
    for number, trial in [("base", sweep.base), *((str(item.number), item) for item in sweep.trials)]:
        figures = ["" if value is None else repr(value) for value in (trial.val_bpb, trial.num_bytes)]
        told = [trial.run_id, trial.run_name, trial.reason]
        writer.writerow([number, trial.state, *trial.values, *figures, *told])
    return text.getvalue()


def ranked(sweep: Sweep) -> list[SweepTrial]:
    """The complete trials, the best first; with two objectives those of the front before all others."""
    main = sweep.objectives[0]
    in_front = set(sweep.front) if len(sweep.objectives) > 1 else set()
    return sorted(sweep.complete(), key=lambda trial: (trial.number not in in_front, trial.figure(main)))


def compare_command(sweep: Sweep) -> str:
    """The command that lays the base and the best trials side by side; empty without a complete trial."""
    runs = [trial.run_id for trial in ranked(sweep) if trial.run_id]
    if not runs:
        return ""
    chosen = dict.fromkeys([sweep.base.run_id, *runs])
    return "fairway compare " + " ".join(run_id[:8] for run_id in list(chosen)[: MOST_COMPARED + 1])


def conclusions(sweep: Sweep, found: SweepTrial | None, problem: str) -> list[str]:
    """Sentences: the outcomes, the best trial, and whether it is announced.

    `found` is the trial that was to be tested, `problem` the reason why it was not.
    """
    counts = {
        state: sum(trial.state == state for trial in sweep.trials)
        for state in ("complete", "pruned", "failed")
    }
    outcomes = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    said = [f"{len(sweep.trials)} trials: {outcomes or 'none'}."]
    if len(sweep.objectives) > 1 and sweep.front:
        numbers = ", ".join(map(str, sweep.front))
        said.append(f"No trial is better in both figures than each of these, one seed each: {numbers}.")
    if found is None:
        better = "in both figures " if len(sweep.objectives) > 1 else ""
        return [*said, f"No trial is {better}better than the base. Nothing is announced."]
    said.append(f"{_described(sweep, found)}. {NOT_TESTED}.")
    if sweep.confirmation is None:
        return [*said, f"{problem}. Nothing is announced."]
    return [*said, *_verdict(sweep)]


def _verdict(sweep: Sweep) -> list[str]:
    test = sweep.confirmation
    assert test is not None
    result = test.comparison
    side = "better" if result.better_by >= 0 else "worse"
    sign = "<" if test.passed else "≥"
    low, high = (_number(test.objective, value) for value in (result.low, result.high))
    gain = f"{_amount(test.objective, abs(result.better_by))} {side} on average than the base"
    measured = (
        f"With {len(test.seeds)} other seeds each ({test.seeds[0]} to {test.seeds[-1]}) trial {test.trial} "
        f"is {gain}; 95 % interval of the gain {low} to {high}. "
        f"Welch's one-sided test: p = {result.p_value:.3g} {sign} {result.alpha:g}."
    )
    if not test.passed:
        return [measured, f"That is not shown. Nothing is announced. {power_note(test)}".strip()]
    settings = " ".join(f"--set {setting}" for setting in _settings(sweep, sweep.trial(test.trial)))
    return [measured, f"**Trial {test.trial} beats the base: {settings}**"]


def _described(sweep: Sweep, trial: SweepTrial) -> str:
    main = sweep.objectives[0]
    gain = sweep.base.figure(main) - trial.figure(main)
    return (
        f"Best: trial {trial.number} ({', '.join(_settings(sweep, trial, short=True))}), "
        f"{_amount(main, gain)} better than the base"
    )


def _settings(sweep: Sweep, trial: SweepTrial, short: bool = False) -> list[str]:
    pairs = zip(sweep.variations, trial.values, strict=True)
    if short:
        return [f"{variation.short}={value}" for variation, value in pairs]
    return [setting for variation, value in pairs for setting in variation.overrides(value)]


def _amount(objective: ObjectiveName, value: float) -> str:
    return f"{value:.5f} {FIGURE_NAMES[objective]}" if objective == "val_bpb" else f"{value:,.0f} bytes"


def _number(objective: ObjectiveName, value: float) -> str:
    return f"{value:+.5f}" if objective == "val_bpb" else f"{value:+,.0f}"


def _row(sweep: Sweep, number: str, trial: SweepTrial) -> Row:
    is_base = number == "base"
    notes = [trial.reason] if trial.reason else []
    if is_base:
        notes.append("nothing varied")
    elif trial.number in sweep.front:
        notes.append("lowest" if len(sweep.objectives) == 1 else "on the front")
    if not is_base and trial.number == sweep.announced:
        notes.append("beats the base")
    gap = None if trial.val_bpb is None or sweep.base.val_bpb is None else trial.val_bpb - sweep.base.val_bpb
    return {
        "trial": number,
        "state": trial.state,
        **dict(zip(columns(sweep), trial.values, strict=True)),
        "val_bpb": "–" if trial.val_bpb is None else bpb(trial.val_bpb),
        "difference": "" if gap is None or is_base else f"{gap:+.5f}",
        "bytes": "–" if trial.num_bytes is None else f"{trial.num_bytes:,}",
        "run": trial.run_id[:8],
        "note": "; ".join(notes),
    }
