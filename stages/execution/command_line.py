"""Run one stage from the shell, without Prefect.

    python -m stages quantize --spec spec.json --input merged=…/record.json

`python -m stages STAGE --help` names the inputs of a stage.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from schemas.base import Schema
from schemas.errors import FairwayError, SpecError
from schemas.files import StageRecord
from schemas.printable import printable
from schemas.runtime import RunOptions
from schemas.stages import KNOWN_STAGES, Stage
from schemas.tokenize_corpus import CorpusManifest
from stages.core.checksummed import read_checksummed
from stages.execution.runner import run_stage
from stages.store.store import Store, open_store_at

log = logging.getLogger(__name__)


def main(stage_name: str, arguments: list[str] | None = None) -> NoReturn:
    """Parse the command line, run the stage, print the path of its record.

    Exits 2 on bad input, 1 on a failed stage.
    """
    stage = KNOWN_STAGES[stage_name]
    options = _parser(stage).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        store = open_store_at(options.store, options.remote)
        spec = _read(Path(options.spec), TypeAdapter(stage.spec_hint), "--spec")
        outcome = run_stage(
            store,
            stage_name,
            spec,
            _inputs(store, stage, spec, options.input),
            RunOptions(store=str(store.root), remote=options.remote),
        )
    except SpecError as error:
        sys.exit(_say(f"{stage_name}: {error}", 2))
    except FairwayError as error:
        sys.exit(_say(f"{stage_name}: {error}", 1))
    except (OSError, RuntimeError) as error:
        log.debug("where it happened", exc_info=error)
        sys.exit(_say(f"{stage_name}: {type(error).__name__}: {error}", 1))
    print(store.folder(stage, outcome.record.provenance.key) / "record.json")
    sys.exit(0)


def _parser(stage: Stage) -> argparse.ArgumentParser:
    takes = ", ".join(
        f"{name} ({kind.__name__})" for name, kind in stage.inputs.items() if kind is not CorpusManifest
    )
    parser = argparse.ArgumentParser(
        prog=f"python -m stages {stage.name}",
        description=f"Run the stage {stage.name} alone, without Prefect.",
    )
    parser.add_argument(
        "--spec",
        required=True,
        help=f"JSON file with the {stage.spec_type.__name__}; {{}} takes every default",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=RECORD",
        help=f"record.json of an earlier stage: {takes or 'none needed'}",
    )
    parser.add_argument(
        "--store",
        default=os.environ.get("FAIRWAY_STORE", ".fairway"),
        help="folder of the store (default: %(default)s)",
    )
    parser.add_argument(
        "--remote",
        default=os.environ.get("FAIRWAY_REMOTE"),
        help="store that machines share, s3://…, gs://…, az://… or file:///…",
    )
    return parser


def _inputs(store: Store, stage: Stage, spec: Any, given: list[str]) -> dict[str, Schema]:
    paths = {name: path for name, _, path in (item.partition("=") for item in given)}
    needed = {name: kind for name, kind in stage.inputs.items() if kind is not CorpusManifest}
    if set(paths) != set(needed):
        raise SpecError(
            f"--input: give {', '.join(f'{name}=…/record.json' for name in needed) or 'none'}; "
            f"given: {', '.join(paths) or 'none'}"
        )
    inputs: dict[str, Schema] = {}
    if CorpusManifest in stage.inputs.values():
        from stages.corpora import locate  # only tokenization needs the corpora

        inputs["manifest"] = locate(spec, store.hashes, store.root / "cache" / "hub")
    for name, kind in needed.items():
        adapter = TypeAdapter(StageRecord[Any, kind])  # type: ignore[valid-type]
        record = _read(Path(paths[name]), adapter, f"--input {name}", read_checksummed)
        inputs[name] = record.result
    return inputs


def _read(
    path: Path, adapter: TypeAdapter, option: str, read_bytes: Callable[[Path], bytes] = Path.read_bytes
) -> Any:
    try:
        return adapter.validate_json(read_bytes(path))
    except ValidationError as error:
        raise SpecError(f"{option} = {path}: {error}") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{option} = {path}: cannot be read ({error})") from error


def _say(message: str, status: int) -> int:
    print(printable(message), file=sys.stderr)
    return status
