"""A whole run: the specs of all stages, and the report that gathers their results."""

from dataclasses import replace

from pydantic import Field, model_validator

from schemas.audit import Audit, AuditOptions
from schemas.base import SCHEMA_VERSION, Schema, SchemaVersion, Volatile
from schemas.check_size import CheckSizeSpec
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError
from schemas.evaluate import EvaluateSpec
from schemas.lora_recipe import LoraRecipe
from schemas.merge import MergeSpec
from schemas.package import PackageOptions, PackageSpec
from schemas.publish import PublishedReport, PublishOptions
from schemas.qat_settings import QatSettings
from schemas.quantize import QuantizeSpec, quantize_compute
from schemas.quantizer_settings import GptqLite, QuantizerSettings
from schemas.recipe import Recipe
from schemas.results import RunResults
from schemas.tokenize_corpus import ShardsCorpus, TokenizeSpec
from schemas.train import TrainSpec


class PipelineSpec(Schema):
    """Everything that decides a run's numbers."""

    tokenize: TokenizeSpec = Field(default_factory=TokenizeSpec, description="text to shards")
    train: TrainSpec = Field(default_factory=TrainSpec, description="shards to snapshots")
    merge: MergeSpec = Field(default_factory=MergeSpec, description="snapshots to one model")
    quantize: QuantizeSpec = Field(default_factory=GptqLite, description="model to blob")
    package: PackageOptions = Field(
        default_factory=PackageOptions, description="blob to the folder that ships"
    )
    check_size: CheckSizeSpec = Field(default_factory=CheckSizeSpec, description="bytes against the limit")
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec, description="bits per byte of what ships")
    audit: AuditOptions = Field(
        default_factory=AuditOptions, description="what is measured of the finished model"
    )
    publish: PublishOptions = Field(default_factory=PublishOptions, description="the report")

    def recipe(self) -> Recipe:
        """What the program that ships repeats: everything from token shards to scores."""
        evaluate = self.evaluate
        parts = (self.train, self.merge.averaging, self.quantize, evaluate.scoring, evaluate.compute)
        lora = evaluate.test_time_training
        return LoraRecipe(*parts, lora) if lora.on else Recipe(*parts)

    def audit_compute(self) -> ComputeSettings:
        """What the audit computes with: the CPU, in float32, with as many threads as a process that
        scores.
        """
        return ComputeSettings(
            threads_per_process=self.evaluate.compute.threads_per_process, precision="float32"
        )

    def package_spec(self) -> PackageSpec:
        return PackageSpec(**self.package.model_dump(), recipe=self.recipe())

    def with_qat_grid(self) -> "PipelineSpec":
        """The spec with the quantizer's grid for late QAT, where QAT is on and no grid is named;
        otherwise as it is.

        Raises SpecError for a quantizer without a grid before training has ended.
        """
        qat = self.train.qat
        if qat.start_lr_scale == 0 or qat.grid != "of_quantizer":
            return self
        if self.quantize.qat_grid is None:
            raise SpecError(
                f"train.qat.start_lr_scale = {qat.start_lr_scale} and quantize.method = "
                f"{self.quantize.method}: its steps come from calibration after training, so training cannot "
                "round to them; set train.qat.start_lr_scale=0, or choose another quantize.method. (Weights "
                "that are trained already: `fairway requantize`)"
            )
        return self.derive(train=replace(self.train, qat=self._grid_of_quantizer()))

    def without_qat_grid(self) -> "PipelineSpec":
        """The inverse: the grid left to the quantizer where it is the quantizer's. A quantizer without a grid
        has no say in it.
        """
        qat = self.train.qat
        has_none = self.quantize.qat_grid is None
        if qat.grid == "of_quantizer" or has_none or qat != self._grid_of_quantizer():
            return self
        return self.derive(
            train=replace(self.train, qat=replace(qat, grid="of_quantizer", clip_candidates=()))
        )

    def _grid_of_quantizer(self) -> QatSettings:
        return on_grid_of(self.quantize, self.train.qat)

    @model_validator(mode="after")
    def _stages_agree(self) -> "PipelineSpec":
        # A ready-made tokenizer brings its own size, which training checks once the file is read.
        own_tokenizer = self.tokenize.tokenizer.model_path is None and not isinstance(
            self.tokenize.corpus, ShardsCorpus
        )
        if own_tokenizer and self.tokenize.tokenizer.vocab_size != self.train.model.vocab_size:
            raise ValueError(
                f"tokenize.tokenizer.vocab_size = {self.tokenize.tokenizer.vocab_size} and "
                f"train.model.vocab_size = {self.train.model.vocab_size}: set both to the same number"
            )
        for name in ("windows", "sequence_length"):
            merged, quantized = (getattr(stage.scoring, name) for stage in (self.merge, self.evaluate))
            if merged != quantized:
                raise ValueError(
                    f"merge.scoring.{name} = {merged} and evaluate.scoring.{name} = {quantized}: the gap "
                    "would compare figures of two kinds; set both alike"
                )
        if self.merge.averaging.method == "ema_of_steps" and self.train.snapshots.ema_horizon is None:
            raise ValueError(
                "merge.averaging.method = ema_of_steps and train.snapshots.ema_horizon is empty: training "
                "would keep no such mean; set the horizon, for example 0.06"
            )
        # Found now, and not after a training without a GPU.
        if quantize_compute(self.quantize).device == "cuda" and self.train.compute.device == "cpu":
            raise ValueError(
                "quantize.calibration.device = cuda and train.compute.device = cpu: set "
                "quantize.calibration.device=cpu, or train on cuda too"
            )
        return self


def on_grid_of(quantizer: QuantizerSettings, qat: QatSettings) -> QatSettings:
    """`qat` on the grid of the quantizer; as it is for one without a grid."""
    if quantizer.qat_grid is None:
        return qat
    return replace(qat, grid=quantizer.qat_grid, clip_candidates=quantizer.qat_clip_candidates)


class StageSummary(Schema):
    """One stage of one run."""

    stage: str
    key: str
    cached: bool
    seconds: float = Field(description="in this run; near 0 when cached")
    computed_seconds: float = Field(description="when it was really computed")


class PipelineReport(RunResults):
    """One run, complete: what was asked, what came out, where it lies."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    run_id: str
    name: str
    preset: str
    created_at: str
    seconds: float
    spec: PipelineSpec
    stages: tuple[StageSummary, ...]
    audit: Audit
    published: Volatile[PublishedReport]
