"""All benchmarks, one after the other, and one table: `make bench`, or python -m benchmarks [--quick]

Each is also a program of its own (`python -m benchmarks.training --help`). The table goes to
docs/performance.md, the figures with machine and commit to benchmarks/results.jsonl, the plot to docs/images.
Status 1 if a goal is not met. `--quick` only shows that everything works: small sizes, nothing written.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.common import ROOT, Figure, circumstances, print_table, table_cells

DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results.jsonl"
PLOT = ROOT / "docs" / "images" / "tokenization-scaling.png"
_BEGIN, _END = "<!-- make bench writes from here -->\n", "<!-- to here -->\n"
# module -> arguments in full, arguments to see that it works
PARTS = {
    "tokenization": (["--megabytes", "100"], ["--runs", "1", "--megabytes", "2"]),
    "training": ([], ["--runs", "2", "--quick"]),
    "quantization": ([], ["--runs", "1"]),
    "evaluation": ([], ["--runs", "1", "--quick"]),
    "orchestration": ([], ["--runs", "1", "--preset", "smoke", "--dataset-gigabytes", "0.2"]),
    "scaling": (
        ["--runs", "3", "--plot", str(PLOT)],
        ["--runs", "1", "--megabytes", "2", "4", "--steps", "4"],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks in one table.")
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="some of them; writes nothing"
    )
    options = parser.parse_args()
    console, began = Console(markup=False), time.perf_counter()
    failed = []
    with tempfile.TemporaryDirectory(prefix="fairway-bench-") as name:
        lines = Path(name) / "results.jsonl"
        lines.touch()
        for module in options.only:
            arguments = PARTS[module][options.quick]
            console.print(
                f"{time.perf_counter() - began:5.0f} s  benchmarks.{module} {' '.join(arguments)}",
                highlight=False,
            )
            command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json", str(lines)]
            if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
                failed.append(module)
        written = lines.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in written.splitlines()]
    figures = [Figure(**{key: row[key] for key in Figure.__dataclass_fields__}) for row in rows]
    print_table(figures)
    minutes = (time.perf_counter() - began) / 60
    with_goal = [figure for figure in figures if figure.met is not None]
    num_met = sum(bool(figure.met) for figure in with_goal)
    about = circumstances()
    where = f"{about['cores']} cores ({about['machine']}), torch {about['torch']}"
    summary = f"{len(with_goal)} goals, {num_met} met; {minutes:.1f} minutes on {where}"
    console.print(summary, highlight=False)
    if failed:
        console.print(f"did not finish: {', '.join(failed)}")
    if not options.quick and options.only == list(PARTS) and not failed:
        RESULTS.write_text(written, encoding="utf-8")
        _write(figures, f"{about['date'][:10]}, commit {about['commit']}: {summary}.")
    sys.exit(0 if not failed and num_met == len(with_goal) else 1)


def _write(figures: list[Figure], summary: str) -> None:
    head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    lines = ["| benchmark | what | ours | peer | ratio | goal | met |", "|---|---|---|---|--:|---|---|"]
    lines += [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in table_cells(figure))} |"
        for figure in figures
    ]
    lines += ["", f"![Tokenization: time and peak memory against corpus size](images/{PLOT.name})"]
    DOCUMENT.write_text(
        f"{head}{_BEGIN}\n{summary}\n\n" + "\n".join(lines) + f"\n\n{_END}{tail}", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
