"""Prefect, and only here.

`FLOW_NAMES` are the flows as the server knows them; importing this imports no Prefect.
"""

FLOW_NAMES = (
    "pipeline",
    "requantize",
    "requantized",
    "frontier",
    "ablate",
    "compare",
    "sample",
    "benchmark",
    "label-run",
    "forget-run",
    "seed-validation",
    "export",
    "export-hf",
)
