"""Tables of what `benchmarks.qat` found."""

import statistics
from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Table

WITHOUT = "without QAT"


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """A table for each preset: mean and standard deviation over seeds, and differences from the training
    without QAT, seed by seed.
    """
    cells: dict[tuple[str, str, str], dict[str, dict[int, dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:
        cells[row["preset"], row["weights"], row["scheme"]][row["training"]][row["seed"]] = row
    for preset in sorted({preset for preset, _, _ in cells}):
        table = Table(
            title=f"{preset}: mean ± standard deviation over seeds; differences by seed", title_justify="left"
        )
        for name in ("weights", "quantizer", "training", "seeds", "unquantized", "quantized", "gap", "bytes"):
            table.add_column(
                name, justify="left" if name in ("weights", "quantizer", "training") else "right"
            )
        table.add_column("quantized, against without", justify="right")
        table.add_column("bytes, against without", justify="right")
        for (owner, which, scheme), trainings in cells.items():
            if owner != preset:
                continue
            plain = trainings.get(WITHOUT, {})
            for training, by_seed in trainings.items():
                both = sorted(set(by_seed) & set(plain)) if training != WITHOUT else []
                differences = [by_seed[seed]["bpb"] - plain[seed]["bpb"] for seed in both]
                lighter = [by_seed[seed]["num_bytes"] / plain[seed]["num_bytes"] - 1 for seed in both]
                columns = ("bpb_unquantized", "bpb", "gap_bpb")
                figures = [
                    spread([row[column] for row in by_seed.values()], signed=column == "gap_bpb")
                    for column in columns
                ]
                mean_bytes = f"{statistics.fmean(row['num_bytes'] for row in by_seed.values()):,.0f}"
                against = (
                    (
                        f"{spread(differences, signed=True)} ({sum(d < 0 for d in differences)} of "
                        f"{len(both)} better)"
                    )
                    if both
                    else ""
                )
                fewer = f"{statistics.fmean(lighter):+.2%}" if both else ""
                table.add_row(
                    which, scheme, training, str(len(by_seed)), *figures, mean_bytes, against, fewer
                )
            table.add_section()
        console.print(table)


def spread(values: list[float], signed: bool) -> str:
    """`1.51566 ± 0.00120`; one value has no deviation."""
    text = f"{statistics.fmean(values):+.5f}" if signed else f"{statistics.fmean(values):.5f}"
    return f"{text} ± {statistics.stdev(values):.5f}" if len(values) > 1 else text
