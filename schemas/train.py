"""Training: token shards in; snapshots of the weights, metrics and the account of what was trained out."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from schemas.base import Schema, Volatile
from schemas.files import FileRef
from schemas.model_settings import ModelSettings
from schemas.train_settings import TrainSettings

TrainSpec = TrainSettings


class Snapshot(Schema):
    """Weights at one step, as safetensors."""

    step: PositiveInt
    lr_scale: NonNegativeFloat
    qat_on: bool
    weights: FileRef


class ParameterGroup(Schema):
    """The parameters that one optimizer updates with one learning rate, as the optimizers themselves held
    them at the end.

    Every parameter is in exactly one group; one that no optimizer held is in a group whose optimizer is
    `none`.
    """

    name: str
    optimizer: str = Field(description="muon, adamw or none")
    lr: float = Field(description="peak")
    weight_decay: float
    decay_factor: float = Field(
        description=(
            "what weight decay alone left of a weight: the product of 1 − lr·weight_decay over the steps"
        )
    )
    parameters: tuple[str, ...]
    num_parameters: NonNegativeInt
    row_norm_spread: float | None = Field(
        None,
        description=(
            "standard deviation over mean of the row norms of the momentum at the end, mean of the matrices; "
            "None where no row was normalised"
        ),
    )


class ParameterChange(Schema):
    """How far a tensor moved from its initialisation."""

    name: str
    shape: tuple[int, ...]
    initial_rms: float
    final_rms: float
    change_rms: float = Field(description="root mean square of final minus initial")
    learned_rms: float = Field(
        description="of final minus what weight decay alone would have left: 0 for a tensor without gradient"
    )
    qat_bits: int | None = Field(
        description="grid that late QAT rounded it to in the forward pass; None: not under QAT"
    )


class TrainTimings(Schema):
    training_seconds: NonNegativeFloat = Field(description="inside the cap's clock")
    warmup_seconds: NonNegativeFloat
    median_step_milliseconds: NonNegativeFloat
    tokens_per_second: NonNegativeFloat
    snapshot_seconds: NonNegativeFloat = Field(description="time that snapshots kept the training loop")
    checkpoint_seconds: NonNegativeFloat = Field(description="time that checkpoints kept the training loop")
    scoring_seconds: NonNegativeFloat = Field(
        0.0, description="time that scores of held-out text took, outside the cap's clock"
    )
    resumed_from_steps: tuple[int, ...] = Field(description="checkpoints that this run went on from")
    peak_memory_bytes: NonNegativeInt


class DocumentRowCounts(Schema):
    """How training text lay in rows that begin with documents."""

    rows: PositiveInt
    at_start: NonNegativeFloat = Field(description="share of rows whose first token begins a document")
    repeated: NonNegativeFloat = Field(description="share of inputs that only fill rows up, seen twice")


class TrainingFigures(Schema):
    """What was measured while a model was trained, and on what came out."""

    num_parameters: PositiveInt
    steps: PositiveInt
    tokens_seen: PositiveInt
    epochs: NonNegativeFloat = Field(description="passes over the training split")
    document_rows: DocumentRowCounts | None = Field(None, description="None: rows follow the stream")
    stopped_by: str = Field(description="max_steps or max_seconds")
    final_train_loss: float = Field(description="nats per token, mean of the last tenth of the steps")
    qat_steps: NonNegativeInt
    qat_grid: str | None = Field(None, description="quantizer whose grid late QAT rounded to; None: no QAT")
    groups: tuple[ParameterGroup, ...]
    changes: tuple[ParameterChange, ...]
    timings: Volatile[TrainTimings]


class TrainingResult(TrainingFigures):
    """What training leaves: the last iterate, the averaging window's snapshots, and the account of both."""

    model: ModelSettings
    last: Snapshot
    snapshots: tuple[Snapshot, ...]
    ema: Snapshot | None = Field(
        None, description="exponential mean of the weights after each step; None: none was kept"
    )
    metrics: Volatile[FileRef]
