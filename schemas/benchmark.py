"""Benchmarking: a finished model and names of tasks in; what lm-evaluation-harness measures out."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator

from schemas.base import Schema, Volatile
from schemas.compute_settings import ComputeSettings
from schemas.files import FileRef, SourceFile
from schemas.model_settings import ModelSettings
from schemas.results import RunResults
from schemas.sample import Weights

BENCHMARK = "benchmark"

TaskName = Annotated[str, Field(pattern=r"^\s*[\w./:+*?-]+\s*$", max_length=200)]


class BenchmarkSpec(Schema):
    """What is measured."""

    tasks: tuple[TaskName, ...] = Field(min_length=1, description="tasks, groups or tags of the harness")
    limit: PositiveInt | None = Field(None, description="first documents of each task; empty: all")
    num_fewshot: NonNegativeInt | None = Field(
        None, description="examples before each question; empty: the task's"
    )
    sequence_length: PositiveInt = Field(description="tokens that the model sees at most")
    batch_tokens: PositiveInt = Field(description="tokens in one forward pass")
    compute: ComputeSettings = Field(default_factory=ComputeSettings, description="where the model runs")

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip() for name in tasks))


class BenchmarkedModel(Schema):
    """The model of a run and its tokenizer."""

    weights: Weights
    file: FileRef = Field(description="the blob of packed weights, the safetensors of merged ones")
    model: ModelSettings
    tokenizer: FileRef | SourceFile

    @classmethod
    def of_run(cls, run: RunResults, weights: Weights) -> "BenchmarkedModel":
        """The packed or the merged model of a run."""
        return cls(
            weights=weights,
            file=run.package.blob if weights == "packed" else run.merged.weights,
            model=run.merged.model,
            tokenizer=run.tokenized.tokenizer,
        )


class OwnTask(Schema):
    """A file below the folder of the user's own tasks, and its name in it."""

    name: str
    source: SourceFile


class OwnTasks(Schema):
    """The folder of the user's own tasks. Its files count by name and content, not by where they lie."""

    folder: Volatile[str | None] = None
    files: tuple[OwnTask, ...] = ()


class Metric(Schema):
    """One figure of a task."""

    name: str
    filter: str = Field(description="how answers were read before they were compared; `none`: as they are")
    value: float | None = Field(description="None: not a finite number")
    stderr: NonNegativeFloat | None = Field(description="standard error; None: the harness gives none")
    higher_is_better: bool | None


class TaskScore(Schema):
    """The figures of one task or group."""

    task: str
    version: str = Field(description="of the task; empty: it has none")
    num_fewshot: NonNegativeInt | None
    num_documents: NonNegativeInt | None = Field(description="measured; None for a group")
    num_available: NonNegativeInt | None = Field(description="that the task has; None for a group")
    metrics: tuple[Metric, ...]


class Benchmark(Schema):
    """What the harness measured of one model."""

    weights: Weights
    harness: str = Field(description="version of lm-evaluation-harness")
    limit: PositiveInt | None
    scores: tuple[TaskScore, ...]
    seconds: Volatile[NonNegativeFloat]
