"""Run one stage alone, without Prefect.

    python -m stages quantize --spec spec.json --input merged=…/record.json

`python -m stages STAGE --help` names the inputs of a stage.
"""

import argparse

from schemas.stages import STAGES
from stages.execution.command_line import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m stages", description="Run one stage alone, without Prefect."
    )
    parser.add_argument(
        "stage", choices=STAGES, help="the stage; `python -m stages STAGE --help` names its options"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    main(given.stage, given.arguments)
