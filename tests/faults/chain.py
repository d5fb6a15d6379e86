"""The whole chain without Prefect, as a program that a fault may strike: python -m tests.faults.chain STORE [NAME=VALUE …]

Prints a JSON line for each stage as it begins and as it ends. Prefect's start-up would take longer than all stages
together; the flow itself is struck in a test of its own.
"""

import json
import logging
import sys
from typing import Any

from flows.specs import resolve
from schemas.base import Schema
from schemas.errors import FairwayError
from schemas.publish import PublishSpec
from schemas.runtime import RunOptions
from stages.corpora import locate
from stages.runner import run_stage
from stages.store import Store

CHECKPOINT_SECONDS = 0.5


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run_chain(sys.argv[1], sys.argv[2:])
    except (FairwayError, OSError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run_chain(root: str, overrides: list[str]) -> dict[str, Any]:
    spec = resolve("smoke", overrides)
    store = Store(root)
    options = RunOptions(store=str(store.root), checkpoint_every_seconds=CHECKPOINT_SECONDS)
    results: dict[str, Any] = {}

    def run(stage: str, stage_spec: Any, **inputs: Schema) -> Any:
        _say(stage=stage, event="begins")
        outcome = run_stage(store, stage, stage_spec, inputs, options)
        _say(stage=stage, event="cached" if outcome.cached else "made", seconds=outcome.seconds, key=outcome.record.provenance.key)
        return outcome.record.result

    tokenized = results["tokenized"] = run("tokenize_corpus", spec.tokenize, manifest=locate(spec.tokenize, store.hashes))
    trained = results["trained"] = run("train", spec.train, tokenized=tokenized)
    merged = results["merged"] = run("merge", spec.merge, trained=trained, tokenized=tokenized)
    packed = results["packed"] = run("quantize", spec.quantize, merged=merged)
    package = results["package"] = run("package", spec.package, packed=packed)
    results["size"] = run("check_size", spec.check_size, package=package, packed=packed)
    results["evaluation"] = run("evaluate", spec.evaluate, package=package, tokenized=tokenized)
    run("publish", PublishSpec(title=spec.publish.title), **results)
    _say(
        event="done",
        blob=str(store.root / package.blob.path),
        sha256=package.blob.sha256,
        resumed=trained.timings.resumed_from_steps,
        bpb=results["evaluation"].non_overlapping.bpb,
    )
    return results


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
