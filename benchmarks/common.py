"""What the benchmarks share: alternating runs, figures with their goals, one table, JSON lines with
machine and commit.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from stages.processes.cores import usable_cores

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    `ratio` is how many times faster ours is; `met` is None for a figure without a goal.
    """

    benchmark: str
    what: str
    ours: str
    peer: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Samples:
    """Seconds of each run of one side: wall clock, and CPU of the process where that is known."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    def __str__(self) -> str:
        digits = 2 if self.median < 10 else 1
        return f"{self.median:.{digits}f} s ({min(self.wall):.{digits}f} to {max(self.wall):.{digits}f})"


def timed(work: Callable[[], T]) -> tuple[tuple[float, float], T]:
    """Wall clock and this process's CPU seconds of `work`, and what it returned."""
    began, cpu_began = time.perf_counter(), time.process_time()
    result = work()
    return (time.perf_counter() - began, time.process_time() - cpu_began), result


def alternate(sides: dict[str, Callable[[], Any]], runs: int) -> dict[str, Samples]:
    """Every side once, then every side again, `runs` times. A side may return its own (wall, CPU) seconds."""
    samples = {name: Samples() for name in sides}
    for _ in range(runs):
        for name, work in sides.items():
            seconds, own = timed(work)
            wall, cpu = own if isinstance(own, tuple) else seconds
            samples[name].wall.append(wall)
            samples[name].cpu.append(cpu)
    return samples


def compared(
    benchmark: str, what: str, ours: Samples, peer: Samples, goal_ratio: float, **details: Any
) -> Figure:
    """The figure of two sides that did the same work: medians of wall clock, and the same of CPU seconds
    among the details.
    """
    ratio = peer.median / ours.median
    cpu_ratio = (
        statistics.median(peer.cpu) / statistics.median(ours.cpu) if min(ours.cpu, default=0) > 0 else None
    )
    details |= {"ours_seconds": ours.wall, "peer_seconds": peer.wall, "cpu_ratio": cpu_ratio}
    return Figure(
        benchmark, what, str(ours), str(peer), ratio, f"≥ {goal_ratio:g}×", ratio >= goal_ratio, details
    )


def parser_for(module: str, description: str, runs: int = 5) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description)
    parser.add_argument(
        "--runs", type=int, default=runs, help="alternating runs of each side (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="append the figures to this file as JSON lines")
    return parser


def report(figures: list[Figure], json_path: Path | None) -> None:
    """Print the figures as a table and append them to `json_path`."""
    print_table(figures)
    if json_path is None:
        return
    about = circumstances()
    with json_path.open("a", encoding="utf-8") as file:
        for figure in figures:
            file.write(json.dumps(asdict(figure) | about, ensure_ascii=False) + "\n")


def print_table(figures: list[Figure]) -> None:
    table = Table(title="Benchmarks", title_justify="left")
    for name in ("benchmark", "what", "ours", "peer", "ratio", "goal", "met"):
        table.add_column(name, overflow="fold", justify="right" if name == "ratio" else "left")
    for cells in map(table_cells, figures):
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 180, markup=False).print(table)


def table_cells(figure: Figure) -> tuple[str, ...]:
    ratio = (
        ""
        if figure.ratio is None
        else f"{figure.ratio:.1f}×"
        if figure.ratio >= 10
        else f"{figure.ratio:.2f}×"
    )
    met = "" if figure.met is None else "yes" if figure.met else "no"
    return (figure.benchmark, figure.what, figure.ours, figure.peer, ratio, figure.goal, met)


def circumstances() -> dict[str, Any]:
    """Where, when and with which code a figure was taken."""
    from importlib.metadata import version

    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    commit, changed = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "-uno")
    return {
        "machine": f"{model}, {platform.machine()}, {platform.system()}",
        "cores": usable_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": version("torch"),
        "commit": (commit or "unknown") + ("+changes" if changed else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str:
    """What git prints about this folder; empty where there is no git or no repository."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    ).stdout.strip()


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
