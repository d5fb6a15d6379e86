"""Charts that tell the figures under the pointer, in pages that ask no other machine for anything.

A box holds the plot as SVG and the same lines as data. `hover.js` draws them by uPlot
(https://github.com/leeoniya/uPlot, MIT) in place of the SVG. Without JavaScript the SVG stays.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from schemas.printable import printable
from stages.report.curves_plot import AXES, shown_range
from stages.report.plots import BLUE, COLOURS, GREEN, MARKERS, ORANGE, PURPLE, RED, loss_range, thin
from stages.report.smoothing import running_mean
from stages.training.metrics import Columns

GLYPHS = dict(zip(MARKERS, "●■▲◆▼✚✕", strict=True))
"""matplotlib's markers as characters, so that a line looks alike in both plots."""
_PALE = "80"
"""A colour's opacity in hexadecimal: half."""
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Line:
    """`x` has the points' places on each axis of the chart, `y` their values."""

    label: str
    colour: str
    x: list[list[float]]
    y: list[float]
    width: float = 1.5
    dash: tuple[int, ...] = ()
    glyph: str = ""


@dataclass(frozen=True)
class Band:
    """A shaded part of the x axis."""

    label: str
    colour: str
    first: float
    last: float


@dataclass(frozen=True)
class Chart:
    """Lines over one of `axes`, which the reader chooses.

    `range` is that of the y axis until a part is enlarged; a logarithmic axis finds its own.
    """

    label: str
    axes: tuple[str, ...]
    lines: list[Line]
    range: tuple[float, float] | None = None
    bands: tuple[Band, ...] = ()
    log: bool = False
    height: int = 300


def loss_chart(metrics: Columns) -> Chart:
    """The lines of `plots.loss_curve`."""
    steps = [metrics["step"]]
    lines = [
        _line("loss", BLUE + _PALE, steps, metrics["loss"], width=1),
        _line("running mean", BLUE, steps, running_mean(metrics["loss"]), width=2),
    ]
    scored = np.isfinite(metrics["val_nats"])
    if scored.any():
        points = [metrics["step"][scored]]
        lines.append(_line("held-out text", RED, points, metrics["val_nats"][scored], glyph=GLYPHS["s"]))
    return Chart("loss, nats a token", ("optimizer step",), lines, loss_range(metrics), _phases(metrics))


def schedule_charts(metrics: Columns) -> list[Chart]:
    """The lines of `plots.timeline`: rates as shares of their peak, and the norm of the gradient."""
    steps, axes = [metrics["step"]], ("optimizer step",)
    taken = metrics["snapshot"].astype(bool)
    shares = [
        _line("learning-rate scale", BLUE, steps, metrics["lr_scale"], width=2),
        _line("Muon momentum", PURPLE, steps, metrics["muon_momentum"], dash=(6, 4)),
    ]
    if taken.any():
        marks = ([metrics["step"][taken]], metrics["lr_scale"][taken])
        shares.append(_line("snapshots", RED, *marks, width=0, glyph=GLYPHS["D"]))
    charts = [Chart("share of the peak", axes, shares, (-0.04, 1.08), _phases(metrics), height=240)]
    drawn = metrics["grad_norm"] > 0  # a logarithmic axis has no 0
    if drawn.any():
        norm = _line("gradient norm", GREEN, [metrics["step"][drawn]], metrics["grad_norm"][drawn], width=1)
        charts.append(Chart("gradient norm", axes, [norm], log=True, height=170))
    return charts


def curves_chart(curves: Sequence[tuple[str, Columns]]) -> Chart:
    """The lines of `curves_plot.curves_svg`, with a choice of steps, seconds and tokens."""
    lines = []
    for index, (name, metrics) in enumerate(curves):
        colour, glyph = COLOURS[index % len(COLOURS)], GLYPHS[MARKERS[index % len(MARKERS)]]
        x = [metrics[column] / (1e6 if column == "tokens" else 1) for column, _ in AXES]
        shown = printable(name)
        lines.append(_line(shown, colour, x, running_mean(metrics["loss"]), glyph=glyph))
        scored = np.isfinite(metrics["val_nats"])
        if scored.any():
            points = [values[scored] for values in x]
            scores = metrics["val_nats"][scored]
            lines.append(_line(f"{shown}, held-out text", colour, points, scores, dash=(2, 4)))
    return Chart(
        "training loss, nats a token",
        tuple(label for _, label in AXES),
        lines,
        shown_range(curves),
        height=360,
    )


def hoverable(svg: str, charts: Sequence[Chart], sync: str = "") -> Markup:
    """A box with the plot and its lines. Boxes of one `sync` show the same x together."""
    told = json.dumps([asdict(chart) for chart in charts], ensure_ascii=False, allow_nan=False)
    return Markup('<div class="hover" data-sync="{}" data-charts="{}">{}</div>').format(
        sync, told, Markup(svg)
    )


@cache
def assets() -> tuple[Markup, Markup, str]:
    """Style for the head of a page with such boxes, scripts for its end, and its Content-Security-Policy.

    By the policy a browser runs these two scripts alone, and asks no other machine for anything.
    """
    scripts = [
        f"/*!\n{_text('uPlot.LICENSE').strip()}\n*/\n{_text('uPlot.iife.min.js').strip()}\n",
        _text("hover.js"),
    ]
    allowed = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"
    style = f"<style>\n{_text('uPlot.min.css').strip()}\n{_text('hover.css')}</style>\n"
    return Markup(style), Markup("".join(f"<script>{script}</script>\n" for script in scripts)), policy


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _line(
    label: str,
    colour: str,
    x: Sequence[NDArray],
    y: NDArray,
    width: float = 1.5,
    dash: tuple[int, ...] = (),
    glyph: str = "",
) -> Line:
    places = [_numbers(thin(values, y)[0]) for values in x]
    return Line(label, colour, places, _numbers(thin(y, y)[0]), width, dash, glyph)


def _numbers(values: NDArray) -> list[float]:
    """Six digits: more than a screen shows, at half the bytes."""
    return [float(f"{value:.6g}") for value in values]


def _phases(metrics: Columns) -> tuple[Band, ...]:
    """Steps between the first and the last snapshot, and those under QAT."""
    bands = []
    for column, colour, label in (("snapshot", GREEN, "snapshot window"), ("qat_on", ORANGE, "QAT on")):
        steps = metrics["step"][metrics[column].astype(bool)]
        if len(steps):
            bands.append(Band(label, colour + "29", float(steps[0]), float(steps[-1])))
    return tuple(bands)
