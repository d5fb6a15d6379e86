"""Plot of a sweep, as SVG text: the trials in their order, and the score over each setting that varied."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from schemas.sweep import Choices, ObjectiveName, Sweep, SweepTrial, Variation
from stages.report.plots import BLUE, GREY, ORANGE, RED, to_svg

LABELS: dict[ObjectiveName, str] = {
    "val_bpb": "val_bpb (lower is better)",
    "bytes": "bytes (fewer is better)",
}
_ACROSS = 3
"""Panels in a row."""


def sweep_svg(sweep: Sweep) -> str:
    """A panel of the trials, one for each variation, and with two objectives one of score against bytes.

    Raises ValueError for a sweep without a complete trial.
    """
    if not sweep.complete():
        raise ValueError("no complete trial to draw")
    panels = 1 + len(sweep.variations) + (len(sweep.objectives) > 1)
    rows = math.ceil(panels / _ACROSS)

    def draw(figure: Figure) -> None:
        shown = list(figure.subplots(rows, min(_ACROSS, panels), squeeze=False).flat)
        for axes in shown[panels:]:
            axes.set_visible(False)
        _in_order(shown[0], sweep)
        for index, variation in enumerate(sweep.variations):
            _over_setting(shown[1 + index], sweep, index, variation)
        if len(sweep.objectives) > 1:
            _against_bytes(shown[panels - 1], sweep)
        shown[0].set_ylabel(LABELS[sweep.objectives[0]])
        handles, names = shown[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower left", ncols=5)

    return to_svg(draw, (3.4 * min(_ACROSS, panels), 0.5 + 2.7 * rows), themed=False)


def _in_order(axes: Axes, sweep: Sweep) -> None:
    main = sweep.objectives[0]
    lowest, best = math.inf, []
    for trial in sweep.complete():
        lowest = min(lowest, trial.figure(main))
        best.append((trial.number, lowest))
    axes.step(*zip(*best, strict=True), where="post", color=BLUE, linewidth=1.4, label="lowest so far")
    _dots(axes, sweep, [trial.number for trial in sweep.complete()])
    lost = [trial.number for trial in sweep.trials if trial.state != "complete"]
    if lost:
        top = axes.get_ylim()[1]
        axes.plot(lost, [top] * len(lost), "x", color=RED, clip_on=False, label="pruned or failed")
    axes.axhline(sweep.base.figure(main), color=GREY, linestyle="--", linewidth=1.3, label="base")
    axes.set_xlabel("trial")


def _over_setting(axes: Axes, sweep: Sweep, index: int, variation: Variation) -> None:
    values = [trial.values[index] for trial in sweep.complete()]
    if isinstance(variation, Choices):
        _dots(axes, sweep, [variation.values.index(value) for value in values])
        axes.set_xticks(range(len(variation.values)), variation.values)
        axes.margins(x=0.2)
    else:
        if variation.log:
            axes.set_xscale("log")
            ticks = [variation.low * (variation.high / variation.low) ** (n / 3) for n in range(4)]
            axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
            axes.set_xticks([], minor=True)
        _dots(axes, sweep, [float(value) for value in values])
    axes.axhline(sweep.base.figure(sweep.objectives[0]), color=GREY, linestyle="--", linewidth=1.3)
    axes.set_xlabel(variation.short, parse_math=False)


def _against_bytes(axes: Axes, sweep: Sweep) -> None:
    main, other = sweep.objectives
    _dots(axes, sweep, [trial.figure(other) for trial in sweep.complete()])
    front = sorted((trial.figure(other), trial.figure(main)) for trial in _front(sweep))
    axes.step(*zip(*front, strict=True), where="post", color=BLUE, linewidth=1.4)
    axes.plot([sweep.base.figure(other)], [sweep.base.figure(main)], "*", color=RED, markersize=12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} MB")
    axes.set_xlabel(LABELS[other])


def _dots(axes: Axes, sweep: Sweep, across: Sequence[float]) -> None:
    scores = [trial.figure(sweep.objectives[0]) for trial in sweep.complete()]
    axes.plot(across, scores, "o", color=BLUE, markersize=4.5, alpha=0.7, label="trial")
    front = {trial.number for trial in _front(sweep)}
    best = [
        (x, y) for trial, x, y in zip(sweep.complete(), across, scores, strict=True) if trial.number in front
    ]
    name = "lowest" if len(sweep.objectives) == 1 else "on the front"
    axes.plot(*zip(*best, strict=True), "D", color=ORANGE, markersize=6.5, label=name)


def _front(sweep: Sweep) -> list[SweepTrial]:
    return [sweep.trial(number) for number in sweep.front]
