"""Prefect, and only here.

`FLOW_NAMES` are the flows as the server knows them; importing this imports no Prefect.
"""

FLOW_NAMES = (
    "pipeline",
    "requantize",
    "requantized",
    "frontier",
    "ablate",
    "sweep",
    "compare",
    "sample",
    "benchmark",
    "label-run",
    "forget-run",
    "seed-validation",
    "export",
    "export-hf",
)
TOLD_FLOWS = ("pipeline", "requantize", "frontier", "ablate", "sweep", "seed-validation")
"""Those that train or measure: the ends of their runs are told (`fairway up --notify`)."""
