"""Plots of the report, as SVG text. They are deterministic: no dates, no random ids.

A themed plot is embedded in the page and takes its text and grid colours from it (light and dark). An
unthemed plot stands alone on white.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from schemas.printable import printable
from stages.report.smoothing import running_mean
from stages.training.metrics import Columns

# Okabe and Ito, Color Universal Design (2008): told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, "#56b4e9")
GREY = "#7b8794"
"""For what is no series of its own: lines and bars to compare with."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One for each series, so that no series is told by its colour alone. Their count and that of the colours
have no common factor: 42 series look different.
"""
_HATCHES = ("", "///", "...", "xxx")
# Stand-ins that no palette has; in a themed plot they become the page's own colours.
INK, GRID = "#010203", "#040506"
INK_AND_GRID = ("#1d2733", "#d9dee5")
"""Their colours on white."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fairway",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
_MAX_POINTS = 1200
_MAX_LABEL = 48
_LABELLED_SHARE = 0.015
"""Of the axis: a narrower part of a bar has no room for its number."""


def loss_curve(metrics: Columns, themed: bool) -> str:
    """Training loss in nats a token over steps, its running mean, and the loss of held-out text if scored."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _loss(axes, metrics)
        axes.set(xlabel="optimizer step", ylabel="loss, nats a token")
        axes.legend(loc="upper right", ncols=3)

    return to_svg(draw, (8.6, 3.3), themed)


def training_plot(metrics: Columns, marks: Sequence[tuple[str, float]]) -> str:
    """A training so far: the loss curve, and the learning-rate scale below it.

    `marks`: name and loss in nats a token of finished models, drawn at the last step.
    """

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _loss(upper, metrics)
        for index, (name, nats) in enumerate(marks):
            marker = MARKERS[2 + index % (len(MARKERS) - 2)]
            upper.plot(metrics["step"][-1:], [nats], marker, color=COLOURS[3 + index % 3], label=name)
        upper.set(ylabel="loss, nats a token")
        upper.legend(loc="upper right", ncols=3)
        lower.plot(*thin(metrics["step"], metrics["lr_scale"]), color=BLUE, linewidth=1.8)
        lower.set(xlabel="optimizer step", ylabel="learning-rate\nscale", ylim=(-0.04, 1.08))

    return to_svg(draw, (8.6, 4.2), themed=False)


def _loss(axes: Axes, metrics: Columns) -> None:
    step, loss = metrics["step"], metrics["loss"]
    axes.plot(*thin(step, loss), color=BLUE, linewidth=0.8, alpha=0.35)
    axes.plot(*thin(step, running_mean(loss)), color=BLUE, linewidth=1.8, label="running mean")
    _mark_phases(axes, metrics)
    scored = _scored(metrics)
    if scored.any():
        axes.plot(
            *thin(step[scored], metrics["val_nats"][scored]),
            color=RED,
            marker=MARKERS[1],
            markersize=4,
            linewidth=1.2,
            label="held-out text",
        )
    axes.set_ylim(*loss_range(metrics))


def loss_range(metrics: Columns) -> tuple[float, float]:
    """Lowest and highest loss to show, with a margin: the first steps' highest losses are left out."""
    loss, scored = metrics["loss"], _scored(metrics)
    low, high = float(loss.min()), float(np.quantile(loss, 0.995))
    if scored.any():
        held_out = metrics["val_nats"][scored]
        low, high = min(low, float(held_out.min())), max(high, float(held_out.max()))
    margin = 0.05 * (high - low + 1e-9)
    return low - margin, high + margin


def _scored(metrics: Columns) -> NDArray:
    """Whether a step has a score of held-out text, (steps,)."""
    return np.isfinite(metrics.get("val_nats", np.full(len(metrics["step"]), np.nan)))


def timeline(metrics: Columns, themed: bool) -> str:
    """Learning-rate scale, Muon momentum and gradient norm over steps, with the QAT window and every
    snapshot.
    """

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        step = metrics["step"]
        upper.plot(*thin(step, metrics["lr_scale"]), color=BLUE, linewidth=1.8, label="learning-rate scale")
        upper.plot(
            *thin(step, metrics["muon_momentum"]),
            color=PURPLE,
            linewidth=1.4,
            linestyle="--",
            label="Muon momentum",
        )
        taken = metrics["snapshot"].astype(bool)
        if taken.any():
            upper.plot(
                step[taken],
                metrics["lr_scale"][taken],
                "D",
                color=RED,
                markersize=4,
                label=f"{int(taken.sum())} snapshots",
            )
        _mark_phases(upper, metrics)
        upper.set(ylabel="share of the peak", ylim=(-0.04, 1.08))
        upper.legend(loc="center left")
        lower.plot(*thin(step, metrics["grad_norm"]), color=GREEN, linewidth=0.9)
        lower.set(xlabel="optimizer step", ylabel="gradient norm", yscale="log")

    return to_svg(draw, (8.6, 4.2), themed)


def decomposition(
    steps: Sequence[tuple[str, float]], others: Sequence[tuple[str, float]], themed: bool
) -> str:
    """Bars of bits per byte: each of our scores, then the general compressors."""

    def draw(figure: Figure) -> None:
        names = [name for name, _ in (*steps, *others)][::-1]
        values = [value for _, value in (*steps, *others)][::-1]
        colours = ([BLUE] * len(steps) + [GREY] * len(others))[::-1]
        axes = figure.add_subplot()
        bars = axes.barh(names, values, color=colours, height=0.62)
        axes.bar_label(bars, labels=[f"{value:.4f}" for value in values], padding=4, color=INK)
        axes.set(
            xlabel="bits per byte of the validation text (lower is better)", xlim=(0, 1.14 * max(values))
        )
        axes.grid(axis="y", visible=False)

    return to_svg(draw, (8.6, 0.75 + 0.36 * (len(steps) + len(others))), themed)


def budget(parts: Sequence[tuple[str, int]], limit_bytes: int, themed: bool) -> str:
    """One bar of all parts against the limit."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        left = 0
        whole = 1.03 * max(limit_bytes, sum(count for _, count in parts))
        for index, (name, count) in enumerate(parts):
            row, colour = divmod(index, len(COLOURS))
            axes.barh(
                [0],
                [count],
                left=left,
                color=COLOURS[colour],
                hatch=_HATCHES[row % len(_HATCHES)],
                edgecolor="white",
                linewidth=0.6,
                height=0.5,
                label=f"{index + 1}  {name} {count:,}",
            )
            if count > _LABELLED_SHARE * whole:
                axes.text(
                    left + count / 2,
                    0,
                    f"{index + 1}",
                    ha="center",
                    va="center",
                    color="white",
                    fontweight="bold",
                )
            left += count
        axes.axvline(limit_bytes, color=RED, linewidth=1.6)
        axes.annotate(
            "limit", (limit_bytes, 0.34), color=RED, ha="right", xytext=(-4, 0), textcoords="offset points"
        )
        axes.set(xlim=(0, whole), ylim=(-0.35, 0.5), yticks=[])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} MB")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.28), ncols=3, handlelength=1, columnspacing=1.6)

    return to_svg(draw, (8.6, 1.9 + 0.18 * (len(parts) // 3)), themed)


def tradeoff(points: Sequence[tuple[str, int, float]], merged_bpb: float) -> str:
    """Bits per byte over artifact bytes, a point a variant: (name, bytes, bpb).

    The line is the model before quantization.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (name, num_bytes, bpb) in enumerate(points):
            shown = printable(name)  # a control character would break the SVG
            label = shown if len(shown) <= _MAX_LABEL else shown[: _MAX_LABEL - 1] + "…"
            axes.plot(
                [num_bytes],
                [bpb],
                MARKERS[index % len(MARKERS)],
                color=COLOURS[index % len(COLOURS)],
                markersize=8,
                label=label,
            )
        axes.axhline(merged_bpb, color=GREY, linewidth=1, linestyle="--", label="merged, not quantized")
        axes.margins(0.12)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(xlabel="bytes of code and model (fewer is better)", ylabel="val_bpb (lower is better)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))

    return to_svg(draw, (9.4, 3.6 + 0.1 * len(points)), themed=False)


def seeds_plot(
    points: Sequence[tuple[int, float]], mean: float, interval: tuple[float, float], bar: float | None
) -> str:
    """Loss of each seed in nats a token, the mean with its 95 % interval, and the line to beat."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhspan(*interval, color=BLUE, alpha=0.13, linewidth=0, label="95 % interval of the mean")
        axes.axhline(mean, color=BLUE, linewidth=1.6, label="mean")
        axes.plot(
            [seed for seed, _ in points],
            [loss for _, loss in points],
            "o",
            color=ORANGE,
            markersize=7,
            label="a seed",
        )
        if bar is not None:
            axes.axhline(bar, color=RED, linewidth=1.4, linestyle="--", label="the mark less its margin")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="seed", ylabel="loss, nats a token")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))

    return to_svg(draw, (8.6, 3.0), themed=False)


def _mark_phases(axes: Axes, metrics: Columns) -> None:
    """Shade the steps between the first and the last snapshot, and those under QAT."""
    phases = (("snapshot", GREEN, "", "snapshot window"), ("qat_on", ORANGE, "///", "QAT on"))
    for column, colour, hatch, name in phases:
        steps = metrics["step"][metrics[column].astype(bool)]
        if len(steps):
            first, last = float(steps[0]), float(steps[-1])
            axes.axvspan(first, last, color=colour, alpha=0.16, linewidth=0, hatch=hatch, label=name)


def thin(x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Every n-th point and the last, so that the page of a long run stays small."""
    keep = np.unique(np.append(np.arange(0, len(x), max(1, -(-len(x) // _MAX_POINTS))), len(x) - 1))
    return x[keep], y[keep]


def drawn(draw: Callable[[Figure], None], size: tuple[float, float], themed: bool) -> Figure:
    """The figure that `draw` fills, `size` in inches; call and save it under STYLE.

    Names in legends, titles and annotations are plain text: a `$` begins no formula.
    """
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_facecolor("none" if themed else "white")
    draw(figure)
    for axes in figure.axes:
        axes.set_facecolor("none")
        legend = axes.get_legend()
        for text in (*axes.texts, *(legend.get_texts() if legend else ())):
            text.set_parse_math(False)
    return figure


def to_svg(draw: Callable[[Figure], None], size: tuple[float, float], themed: bool) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        drawn(draw, size, themed).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # no XML declaration and document type inside HTML
    ink, grid = ("currentColor", "var(--grid)") if themed else INK_AND_GRID
    return text.replace(INK, ink).replace(GRID, grid)
