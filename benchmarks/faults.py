"""Strike real runs in every way of docs/reliability.md and tabulate what happened: `make faults`, or
python -m benchmarks.faults

Runs the tests under tests/faults at full size, prints a table with a row for each figure, and writes it to
docs/reliability.md. Status 1 if a figure is not met or a test did not pass.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.processes.cores import usable_cores

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
_MARK = "<!-- make faults writes below this line -->\n"
LINES = {
    "1": "killed anywhere",
    "2": "cancel",
    "3": "damage",
    "4": "two at once",
    "5": "disk and permissions",
    "6": "hostile and bad input",
    "7": "retries",
    "8": "housekeeping",
    "9": "nobody gets in",
    "10": "several machines",
    "11": "one training on several machines",
}
ONLY_AS_ROOT = {"11"}


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fairway-faults-") as folder:
        # PostgreSQL refuses to run as root, so its folder lies under one that other accounts may enter.
        Path(folder).chmod(0o711)
        figures = Path(folder) / "figures.jsonl"
        figures.touch()
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "",
            "--timeout",
            "900",
            "-n",
            "2",
            "--dist",
            "loadfile",
            *sys.argv[1:],
        ]
        environment = {
            **os.environ,
            "FAIRWAY_FAULTS": "full",
            "FAIRWAY_FAULTS_OUT": str(figures),
            "TMPDIR": folder,
        }
        status = subprocess.run(
            [*command, "tests/faults", "tests/flows/test_retries.py"], cwd=ROOT, env=environment
        ).returncode
        rows = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: int(row["line"]))
    seconds = time.perf_counter() - started
    _print(rows)
    missing = sorted(set(LINES) - ONLY_AS_ROOT - {row["line"] for row in rows})
    met = status == 0 and not missing and all(row["met"] for row in rows)
    summary = (
        f"{len(rows)} figures, {sum(row['met'] for row in rows)} met; {seconds / 60:.1f} "
        f"minutes on {usable_cores()} cores"
    )
    Console(markup=False).print(
        summary if not missing else f"{summary}; no figure for line {', '.join(missing)}"
    )
    if met:
        _write(rows, f"{date.today().isoformat()}, {platform.system()} {platform.machine()}: {summary}.")
    sys.exit(0 if met else 1)


def _print(rows: list[dict]) -> None:
    table = Table(title="Faults", title_justify="left", show_lines=True)
    for name in ("line", "what was done", "figure", "met"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            f"{row['line']} {LINES[row['line']]}",
            row["done"],
            row["figure"],
            "yes" if row["met"] else Text("no", style="red"),
        )
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)


def _write(rows: list[dict], summary: str) -> None:
    head, _, _ = DOCUMENT.read_text(encoding="utf-8").partition(_MARK)
    lines = ["| line | what was done | figure | met |", "|---|---|---|---|"]
    for row in rows:
        cells = (f"{row['line']} {LINES[row['line']]}", row["done"], row["figure"], "yes")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|').strip() for cell in cells)} |")
    DOCUMENT.write_text(f"{head}{_MARK}\n{summary}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
