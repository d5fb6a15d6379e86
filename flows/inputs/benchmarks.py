"""Requests for `benchmark`, from a command or a form → the spec and the inputs of its stage.

It imports neither Prefect nor torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from schemas.base import Schema, in_our_words
from schemas.benchmark import BenchmarkedModel, BenchmarkSpec
from schemas.errors import SpecError
from schemas.pipeline import PipelineReport
from schemas.sample import Weights
from stages.benchmarking.own_tasks import find_own_tasks
from stages.store.runs import require_files
from stages.store.store import Store


@dataclass(frozen=True)
class Asked:
    """As the user says it. `tasks`: names, each perhaps several with commas between."""

    tasks: Sequence[str]
    limit: int | None = None
    num_fewshot: int | None = None
    weights: Weights = "packed"
    include_path: Path | None = None

    def spec(self, run: PipelineReport) -> BenchmarkSpec:
        """The spec for this run: its windows, its precision, one process. Raises SpecError."""
        names = [name for given in self.tasks for name in given.split(",") if name.strip()]
        if not names:
            raise SpecError(
                "tasks: none given. Name tasks of lm-evaluation-harness, as hellaswag,lambada_openai"
            )
        scoring, compute = run.spec.evaluate.scoring, run.spec.evaluate.compute
        try:
            return BenchmarkSpec(
                tasks=tuple(names),
                limit=self.limit,
                num_fewshot=self.num_fewshot,
                sequence_length=scoring.sequence_length,
                batch_tokens=scoring.batch_tokens,
                compute=replace(compute, num_processes=1),
            )
        except ValidationError as error:
            said = (f"{item['loc'][0]} = {item['input']}: {in_our_words(item)}" for item in error.errors())
            raise SpecError("; ".join(said)) from error

    def inputs(self, run: PipelineReport, store: Store) -> dict[str, Schema]:
        """The model and the user's own tasks. Raises SpecError for files that are missing or damaged."""
        model = BenchmarkedModel.of_run(run, self.weights)
        require_files(store, run, (model.file, model.tokenizer))
        return {"model": model, "own_tasks": find_own_tasks(self.include_path, store.hashes, "include_path")}
