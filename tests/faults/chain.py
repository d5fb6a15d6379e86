"""The whole chain without Prefect, as a program that a fault may strike: python -m tests.faults.chain
STORE [--until STAGE] [NAME=VALUE …]

Prints a JSON line for each stage as it begins and as it ends. Prefect's start-up would take longer than all
stages together; the flow itself is struck in tests of its own. A test that looks at the blob ends with
`package`: the later stages take as long as those before it.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.inputs.specs import resolve
from schemas.errors import FairwayError
from schemas.pipeline import PipelineSpec
from schemas.publish import PublishSpec
from schemas.runtime import RunOptions
from schemas.stages import STAGES, result_name
from stages.corpora import locate
from stages.execution.runner import StageOutcome, is_made, run_stage
from stages.store.keys import stage_key
from stages.store.machine import resolve_precision
from stages.store.store import open_store_at

CHECKPOINT_SECONDS = 0.5
LAST = list(STAGES)[-1]
_SECTION = {"tokenize_corpus": "tokenize"}


def up_to(stage: str) -> list[str]:
    """The stages from the first to this one."""
    return list(STAGES)[: list(STAGES).index(stage) + 1]


class Chain:
    """One run of the preset `smoke`, stage by stage in this process.

    `results` is kept by the name that later stages take it under.
    """

    def __init__(
        self, root: Path | str, overrides: list[str], remote: str | None = None, **options: Any
    ) -> None:
        self.spec: PipelineSpec = resolve("smoke", overrides)
        self.store, self._remote, self._options = open_store_at(root, remote), remote, options
        self.results: dict[str, Any] = {"manifest": locate(self.spec.tokenize, self.store.hashes)}

    def run(self, stage: str) -> StageOutcome:
        """Run or serve one stage; those before it must have been run."""
        options = RunOptions(
            store=str(self.store.root),
            remote=self._remote,
            checkpoint_every_seconds=CHECKPOINT_SECONDS,
            **self._options,
        )
        outcome = run_stage(self.store, stage, self._spec(stage), self._inputs(stage), options)
        self.results[result_name(stage)] = outcome.record.result
        return outcome

    def is_made(self, stage: str) -> bool:
        """Whether the store would serve the stage; those before it must have been run."""
        return is_made(self.store, stage, self._spec(stage), self._inputs(stage))

    def key(self, stage: str) -> str:
        """The key under which the stage's result lies, made or not; those before it must have been run."""
        return stage_key(STAGES[stage], resolve_precision(self._spec(stage)), self._inputs(stage))

    def _spec(self, stage: str) -> Any:
        whole = {"publish": PublishSpec(), "package": self.spec.package_spec(), "audit": self.spec}
        return whole[stage] if stage in whole else getattr(self.spec, _SECTION.get(stage, stage))

    def _inputs(self, stage: str) -> dict[str, Any]:
        return {name: self.results[name] for name in STAGES[stage].inputs}

    def run_all(self, tell: Callable[..., None] = lambda **event: None, until: str = LAST) -> None:
        """Run or serve the stages in their order up to `until`; `tell` hears of each, and of the end."""
        for stage in up_to(until):
            tell(stage=stage, event="begins")
            outcome = self.run(stage)
            key = outcome.record.provenance.key
            tell(stage=stage, event="cached" if outcome.cached else "made", seconds=outcome.seconds, key=key)
        tell(event="done", **self._blob(), resumed=self.results["trained"].timings.resumed_from_steps)

    def _blob(self) -> dict[str, str]:
        """Path and sha256 of the blob in the package; nothing before `package`."""
        if (package := self.results.get("package")) is None:
            return {}
        return {"blob": str(self.store.root / package.blob.path), "sha256": package.blob.sha256}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chain")
    parser.add_argument("store")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--until", choices=up_to(LAST)[1:], default=LAST)
    asked = parser.parse_intermixed_args()
    try:
        chain = Chain(asked.store, asked.overrides, os.environ.get("FAIRWAY_REMOTE"))
        chain.run_all(lambda **event: print(json.dumps(event), flush=True), asked.until)
    except (FairwayError, OSError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
