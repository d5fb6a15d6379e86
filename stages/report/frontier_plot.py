"""Bits per byte against bytes of the package for every quantizer on one run's weights, as SVG text and as
a PNG picture.
"""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from schemas.frontier import Frontier, FrontierPoint
from stages.report.plots import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    INK_AND_GRID,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
    drawn,
    to_svg,
)

PNG_DOTS_PER_INCH = 150
_SIZE = (8.6, 5.0)
_LOOKS = {
    # colour, marker, and where a point's setting stands: offset in points, horizontal alignment
    "round_to_nearest": (ORANGE, "s", (7, 5), "left"),
    "gptq_lite": (PURPLE, "^", (8, -4), "left"),
    "gptq": (GREEN, "D", (-7, -11), "right"),
    "ecsq": (BLUE, "o", (7, 5), "left"),
    "reference": (INK, "X", (7, 6), "left"),
}
_NEAR = 1.15
"""The limit is drawn when it is at most this many times the largest package, and at least the smallest
one over this.
"""


def frontier_svg(found: Frontier) -> str:
    """One line a quantizer, the unquantized model as a dashed line, what the run ships as a star; on
    white.
    """
    return to_svg(lambda figure: _draw(figure, found), _SIZE, themed=False)


def frontier_png(found: Frontier) -> bytes:
    """The same picture."""
    ink, grid = INK_AND_GRID
    style = {
        name: {INK: ink, GRID: grid}.get(value, value) if isinstance(value, str) else value
        for name, value in STYLE.items()
    }
    buffer = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = drawn(lambda empty: _draw(empty, found, ink), _SIZE, themed=False)
        figure.savefig(buffer, format="png", dpi=PNG_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _draw(figure: Figure, found: Frontier, ink: str = INK) -> None:
    axes = figure.add_subplot()
    by_method: dict[str, list[FrontierPoint]] = {}
    for point in sorted(found.points, key=lambda point: point.total_bytes):
        by_method.setdefault(point.method, []).append(point)
    for method, points in by_method.items():
        _draw_method(axes, method, points, ink)
    axes.plot(
        [found.shipped.total_bytes],
        [found.shipped.bpb],
        "*",
        color=RED,
        markersize=15,
        markeredgecolor="white",
        label=f"the run itself ({found.shipped.method})",
        zorder=5,
        linestyle="none",
    )
    axes.axhline(
        found.unquantized_bpb,
        color=GREY,
        linewidth=1.3,
        linestyle="--",
        label=f"not quantized, {found.unquantized_bpb:.5f}",
    )
    _draw_limit(axes, found)
    axes.margins(x=0.09, y=0.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4f}")
    axes.set(
        xlabel="bytes of the package, script included, millions (fewer is better)",
        ylabel="bits per byte (lower is better)",
    )
    gap = axes.secondary_yaxis("right", functions=_around(found.unquantized_bpb))
    gap.set_ylabel("gap to the unquantized model")
    gap.yaxis.set_major_formatter(lambda value, _: f"{value:+.4f}")
    title = f"{found.run_name}: the same weights, every quantizer"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", parse_math=False)
    axes.legend(loc="upper right")


def _draw_method(axes: Axes, method: str, points: list[FrontierPoint], ink: str) -> None:
    colour, marker, offset, side = _LOOKS.get(method, (GREY, "P", (7, 5), "left"))
    axes.plot(
        [point.total_bytes for point in points],
        [point.bpb for point in points],
        marker=marker,
        color=ink if colour == INK else colour,
        linewidth=1.6,
        markersize=8 if marker == "X" else 6.5,
        markeredgecolor="white",
        label=method,
        zorder=4 if method == "reference" else 3,
    )
    for point in points:
        setting = point.scheme.partition(":")[2] or point.scheme
        setting += " nats" if setting[0].isdigit() else ""
        axes.annotate(
            setting,
            (point.total_bytes, point.bpb),
            xytext=offset,
            textcoords="offset points",
            ha=side,
            fontsize=8.5,
            color=ink if colour == INK else colour,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
            zorder=6,
        )


def _draw_limit(axes: Axes, found: Frontier) -> None:
    sizes = [point.total_bytes for point in (*found.points, found.shipped)]
    if min(sizes) / _NEAR <= found.limit_bytes <= max(sizes) * _NEAR:
        axes.axvline(found.limit_bytes, color=RED, linewidth=1.3, label=f"limit, {found.limit_bytes:,} bytes")


def _around(middle: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """From bits per byte to the distance from `middle`, and back."""
    return (lambda bpb: bpb - middle), (lambda gap: gap + middle)
