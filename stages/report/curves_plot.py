"""Training losses of several runs in one picture: over steps, seconds and tokens."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from schemas.printable import printable
from stages.report.plots import COLOURS, MARKERS, thin, to_svg
from stages.report.smoothing import running_mean
from stages.training.metrics import Columns

AXES = (("step", "optimizer step"), ("seconds", "seconds of training"), ("tokens", "tokens, millions"))
CURVE_COLUMNS = ("step", "seconds", "tokens", "loss", "val_nats")
_MARKS = 8
"""Markers on each curve."""
_SHOWN_FROM = 0.05
"""Share of the steps whose high losses would squeeze the rest of the picture."""


def curves_svg(curves: Sequence[tuple[str, Columns]], themed: bool) -> str:
    """Running mean of the training loss in nats a token; a curve for each (name, metrics), and a dotted one
    of its held-out text where that was scored.

    The metrics have CURVE_COLUMNS. Raises ValueError for no curve.
    """
    if not curves:
        raise ValueError("no curve to draw")

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(AXES), sharey=True)
        for axes, (column, label) in zip(panels, AXES, strict=True):
            for index, (name, metrics) in enumerate(curves):
                values = metrics[column] / 1e6 if column == "tokens" else metrics[column]
                _curve(axes, index, name, values, metrics)
            axes.set_xlabel(label)
        panels[0].set_ylabel("training loss, nats a token")
        panels[0].set_ylim(*shown_range(curves))
        handles, names = panels[0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside lower left", ncols=2)
        for text in legend.get_texts():
            text.set_parse_math(False)

    return to_svg(draw, (10.2, 3.4 + 0.12 * len(curves)), themed)


def _curve(axes: Axes, index: int, name: str, x: NDArray, metrics: Columns) -> None:
    colour = COLOURS[index % len(COLOURS)]
    axes.plot(
        *thin(x, running_mean(metrics["loss"])),
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        # Shifted from curve to curve, so that markers of equal curves do not hide one another.
        markevery=(0.1 * (index % 10) / _MARKS, 1 / _MARKS),
        markersize=5,
        linewidth=1.5,
        label=printable(name),
    )
    scored = np.isfinite(metrics["val_nats"])
    if scored.any():
        axes.plot(*thin(x[scored], metrics["val_nats"][scored]), color=colour, linestyle=":", linewidth=1.8)


def shown_range(curves: Sequence[tuple[str, Columns]]) -> tuple[float, float]:
    """Lowest and highest loss to show, with a margin."""
    smooth = [running_mean(metrics["loss"]) for _, metrics in curves]
    later = np.concatenate([loss[int(_SHOWN_FROM * len(loss)) :] for loss in smooth])
    low, high = float(later.min()), float(later.max())
    margin = 0.05 * (high - low) + 1e-9
    return low - margin, high + margin
