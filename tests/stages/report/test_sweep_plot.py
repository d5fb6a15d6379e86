"""The picture of a sweep: a panel for the trials, one for each setting, one for score against bytes."""

import re

import pytest

from schemas.sweep import Choices, Range, Sweep, SweepTrial
from stages.report.sweep_plot import sweep_svg

RATE = Range(settings=("train.optimizer.muon_lr",), low=0.01, high=0.1, log=True)
LAYERS = Choices(settings=("train.model.num_layers",), values=("4", "6"))


def sweep(states: str, *objectives: str) -> Sweep:
    """Trials with these states, c(omplete), p(runed) or f(ailed), each better than the one before."""
    names = {"c": "complete", "p": "pruned", "f": "failed"}
    trials = [
        SweepTrial.model_validate(
            {"number": n, "state": names[state], "values": (f"0.0{n + 1}", "46"[n % 2])}
            | ({"val_bpb": 1.5 - 0.01 * n, "num_bytes": 1_000_000 + n} if state == "c" else {})
        )
        for n, state in enumerate(states)
    ]
    return Sweep.model_validate(
        {
            "label": "demo-1",
            "preset": "demo",
            "objectives": objectives,
            "seed": 0,
            "variations": (RATE, LAYERS),
            "base": SweepTrial(
                number=0, state="complete", values=("0.05", "4"), val_bpb=1.49, num_bytes=1_000_001
            ),
            "trials": trials,
            "front": tuple(n for n, state in enumerate(states) if state == "c")[-1:],
        }
    )


def words_of(svg: str) -> set[str]:
    return set(re.findall(r">([^<>]+)</text>", svg))


def test_each_setting_has_a_panel_and_the_base_is_in_all() -> None:
    shown = words_of(sweep_svg(sweep("ccpfc", "val_bpb")))
    assert {"trial", "muon_lr", "num_layers", "base", "lowest so far", "pruned or failed"} <= shown
    assert "bytes (fewer is better)" not in shown
    assert "pruned or failed" not in words_of(sweep_svg(sweep("cc", "val_bpb")))


def test_two_objectives_are_drawn_against_each_other() -> None:
    drawn = sweep("ccc", "val_bpb", "bytes")
    assert {"bytes (fewer is better)", "on the front"} <= words_of(sweep_svg(drawn))
    assert sweep_svg(drawn) == sweep_svg(drawn)


def test_without_a_complete_trial_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no complete trial"):
        sweep_svg(sweep("fp", "val_bpb"))
