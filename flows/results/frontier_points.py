"""Output files of `fairway frontier`: table rows, frontier.json, frontier.png and frontier.svg.

It imports neither Prefect nor torch.
"""

import os
from pathlib import Path

from flows.results.tables import Row
from schemas.errors import SpecError
from schemas.frontier import Frontier, FrontierPoint
from stages.report.rows import bpb

JSON_NAME, PNG_NAME, SVG_NAME = "frontier.json", "frontier.png", "frontier.svg"
EFFICIENT = "best at its size"


def frontier_rows(frontier: Frontier) -> list[Row]:
    """The unquantized model, the run's package, then every scheme by method and falling bytes; failed ones
    last.
    """
    unquantized = dict.fromkeys(
        ("package bytes", "model bytes", "bits a parameter", "gap", "quantize, s"), ""
    ) | {
        "scheme": "not quantized",
        "val_bpb": bpb(frontier.unquantized_bpb),
        "": "",
    }
    methods = list(dict.fromkeys(point.method for point in frontier.points))
    ordered = sorted(frontier.points, key=lambda point: (methods.index(point.method), -point.total_bytes))
    rows = [_row(frontier, point) for point in (frontier.shipped, *ordered)]
    lacking = [
        dict.fromkeys(rows[0], "") | {"scheme": name, "": f"failed: {why}"}
        for name, why in frontier.failed.items()
    ]
    return [{name: unquantized[name] for name in rows[0]}, *rows, *lacking]


def make_folder(folder: Path) -> None:
    """Make `folder`, which may exist. Raises SpecError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"output = {folder}: cannot be made ({error}). Give another folder") from error
    if not os.access(folder, os.W_OK):
        raise SpecError(f"output = {folder}: is read-only. Give another folder")


def write_frontier(frontier: Frontier, folder: Path) -> str:
    """Write the three files into `folder`; returns the SVG."""
    from stages.report.frontier_plot import (
        frontier_png,
        frontier_svg,
    )  # matplotlib, which a mere table does without

    svg = frontier_svg(frontier)
    (folder / JSON_NAME).write_text(frontier.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / PNG_NAME).write_bytes(frontier_png(frontier))
    (folder / SVG_NAME).write_text(svg, encoding="utf-8")
    return svg


def _row(frontier: Frontier, point: FrontierPoint) -> Row:
    notes = [EFFICIENT] if frontier.is_efficient(point) else []
    if point.total_bytes > frontier.limit_bytes:
        notes.append(f"over the limit by {point.total_bytes - frontier.limit_bytes:,}")
    return {
        "scheme": point.scheme if point is not frontier.shipped else f"{point.scheme} ({point.method})",
        "package bytes": f"{point.total_bytes:,}",
        "model bytes": f"{point.model_bytes:,}",
        "bits a parameter": f"{point.bits_per_parameter:.2f}",
        "val_bpb": bpb(point.bpb),
        "gap": f"{point.gap_bpb:+.5f}",
        "quantize, s": f"{point.quantize_seconds:.1f}",
        "": ", ".join(notes),
    }
