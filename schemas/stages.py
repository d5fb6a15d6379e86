"""The stages: what each is called, where its work lies, what it takes and what it gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.audit import Audit
from schemas.base import Schema
from schemas.benchmark import BENCHMARK, Benchmark, BenchmarkedModel, BenchmarkSpec, OwnTasks
from schemas.check_size import CheckSizeSpec, SizeReport
from schemas.compute_settings import ComputeSettings
from schemas.evaluate import EvaluateSpec, Evaluation
from schemas.files import StageRecord
from schemas.merge import MergedModel, MergeSpec
from schemas.package import ALLOWED_PACKAGES, Package, PackageSpec
from schemas.pipeline import PipelineSpec
from schemas.publish import PublishedReport, PublishSpec
from schemas.quantize import PackedModel, QuantizeSpec, quantize_compute
from schemas.quantizer_settings import QuantizerSettings
from schemas.results import RunResults
from schemas.tokenize_corpus import CorpusManifest, TokenizedCorpus, TokenizerSpec, TokenizeSpec
from schemas.tokenize_parts import CorpusPart, PartSpec, TokenizedPart, TokenizerModel, TrainingText
from schemas.train import TrainingResult, TrainSpec


@dataclass(frozen=True)
class Stage:
    """`inputs` maps each parameter of the stage function to the type of the result it takes.

    `child_modules` run in processes of their own, so imports do not lead to them. `unkeyed_modules` run in
    place of one and leave the same result, so that the key does not cover them. `libraries` are used by what
    runs without being imported here. `compute` says with what a stage of this spec computes: if not
    None, its result depends on the kind of machine and is keyed by it. `reads` names volatile fields of
    inputs that count here, because the result tells them. A resumable stage finds the files of an interrupted
    try in its output folder; what only serves that (`scratch`) is not published, and its result has folders
    without which it cannot go on either (`resumes_with`). One that `ships_source` is keyed by its source to
    the letter. `spec_union` is the annotation that reads a spec of one of several types.
    """

    name: str
    spec_type: type
    result_type: type[Schema]
    inputs: dict[str, type[Schema]]
    child_modules: tuple[str, ...] = ()
    unkeyed_modules: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    compute: Callable[[Any], ComputeSettings | None] = lambda spec: None
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    resumable: bool = False
    scratch: tuple[str, ...] = ()
    resumes_with: tuple[str, ...] = ()
    ships_source: bool = False
    spec_union: Any = None

    @property
    def module(self) -> str:
        return f"stages.{self.name}"

    @property
    def code_roots(self) -> tuple[str, ...]:
        return (self.module, *self.child_modules)

    @property
    def spec_hint(self) -> Any:
        """The type of the spec, by which pydantic reads it."""
        return self.spec_union or self.spec_type

    def arguments(self, inputs: dict[str, Schema]) -> dict[str, Schema]:
        """The inputs as the parameters of the stage function."""
        parts = RunResults.types()
        if not parts.keys() <= inputs.keys():
            return inputs
        others = {name: value for name, value in inputs.items() if name not in parts}
        return {"results": RunResults.model_validate({name: inputs[name] for name in parts}), **others}

    def record_type(self) -> type[StageRecord]:
        return StageRecord[self.spec_hint, self.result_type]  # type: ignore[name-defined]


def _own_compute(spec: Any) -> ComputeSettings:
    compute: ComputeSettings = spec.compute
    return compute


# What findings and figures are made of, beside what identifies the results.
_READ_BY_AUDIT = {
    "trained": ("metrics", "timings"),
    "merged": ("last", "score"),
    "evaluation": ("test_time_training_seconds",),
}

_ALL = (
    Stage("tokenize_corpus", TokenizeSpec, TokenizedCorpus, {"manifest": CorpusManifest}),
    Stage(
        "train",
        TrainSpec,
        TrainingResult,
        {"tokenized": TokenizedCorpus},
        ("stages.training.worker",),
        ("stages.training.scoring_worker",),
        compute=_own_compute,
        resumable=True,
        scratch=("checkpoints", "metrics.jsonl", "nodes"),
        resumes_with=("snapshots",),
    ),
    Stage(
        "merge",
        MergeSpec,
        MergedModel,
        {"trained": TrainingResult, "tokenized": TokenizedCorpus},
        ("stages.scoring.worker",),
        compute=_own_compute,
    ),
    Stage(
        "quantize",
        QuantizerSettings,
        PackedModel,
        {"merged": MergedModel, "tokenized": TokenizedCorpus},
        ("stages.quantizing.worker",),
        compute=quantize_compute,
        spec_union=QuantizeSpec,
    ),
    Stage(
        "package",
        PackageSpec,
        Package,
        {"packed": PackedModel},
        ("stages.core.program",),
        # The script says on which kind of machine its run was made.
        compute=lambda spec: spec.recipe.train.compute if spec.recipe else None,
        ships_source=True,
    ),
    Stage("check_size", CheckSizeSpec, SizeReport, {"package": Package, "packed": PackedModel}),
    Stage(
        "evaluate",
        EvaluateSpec,
        Evaluation,
        {"package": Package, "tokenized": TokenizedCorpus},
        libraries=tuple(sorted(ALLOWED_PACKAGES)),  # of the packaged script, which is run and not imported
        compute=_own_compute,
    ),
    Stage(
        "audit",
        PipelineSpec,
        Audit,
        RunResults.types(),
        ("stages.auditing.worker",),
        compute=PipelineSpec.audit_compute,
        reads=_READ_BY_AUDIT,
    ),
    Stage(
        "publish",
        PublishSpec,
        PublishedReport,
        {**RunResults.types(), "audit": Audit},
        reads=_READ_BY_AUDIT,
    ),
)

_STEPS = (
    Stage("make_tokenizer", TokenizerSpec, TokenizerModel, {"text": TrainingText}),
    Stage("tokenize_part", PartSpec, TokenizedPart, {"part": CorpusPart, "tokenizer": TokenizerModel}),
)

STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
"""The chain, in its order."""

KNOWN_STAGES = (
    STAGES
    | {step.name: step for step in _STEPS}
    | {
        BENCHMARK: Stage(
            BENCHMARK,
            BenchmarkSpec,
            Benchmark,
            {"model": BenchmarkedModel, "own_tasks": OwnTasks},
            ("stages.benchmarking.worker",),
            compute=_own_compute,
        )
    }
)
"""The chain, the stored steps of `tokenize_corpus`, and what works on a finished run."""


def result_name(stage: str) -> str:
    """The name under which later stages take this stage's result, as `merged` for `merge`."""
    takers = STAGES["publish"].inputs.items()
    return next((name for name, kind in takers if kind is STAGES[stage].result_type), stage)
