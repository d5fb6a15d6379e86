"""Seed validation: what one configuration scored under each seed, and what all seeds together show."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.base import Schema

LEDGER_VERSION: Literal[2] = 2  # 1: Parquet, without a checksum


class SeedFigures(Schema):
    """What one seed gave.

    Nats are per token and of the score that counts: sliding windows where they were scored.
    """

    val_loss_nats: float = Field(description="nats a token")
    val_bpb_last: float
    val_bpb_merged: float
    val_bpb_quantized: float
    val_bpb_quantized_sliding: float | None
    num_targets: PositiveInt = Field(description="scored tokens")
    num_bytes: PositiveInt = Field(description="UTF-8 bytes that they stand for")
    total_bytes: PositiveInt = Field(description="code and model together")
    blob_sha256: str


class SeedEntry(Schema):
    """One seed of a ledger. A failed one is tried again and replaced."""

    seed: NonNegativeInt
    status: Literal["completed", "failed"]
    run_id: str
    run_name: str
    created_at: str
    code_sha256: str = Field(description="of the stages that decide the figures")
    machine: str = Field("", description="kind of machine that trained it; empty: not known")
    tries: PositiveInt = 1
    rechecked_at: str = Field("", description="when the seed was last trained again and gave the same")
    error: str = ""
    figures: SeedFigures | None = None


class Ledger(Schema):
    """All seeds of one configuration. The maximum is declared before the first seed is trained, and stays."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    configuration: str = Field(description="fingerprint of the whole spec without its seed")
    first_seed: NonNegativeInt
    max_seeds: int = Field(ge=2)
    entries: tuple[SeedEntry, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.name}-{self.configuration[:8]}"

    def entry(self, seed: int) -> SeedEntry | None:
        return next((entry for entry in self.entries if entry.seed == seed), None)

    def with_entry(self, entry: SeedEntry) -> "Ledger":
        """A copy in which `entry` stands for its seed."""
        others = [other for other in self.entries if other.seed != entry.seed]
        return self.derive(entries=tuple(sorted([*others, entry], key=lambda item: item.seed)))

    def merged_with(self, other: "Ledger") -> "Ledger":
        """A copy with the entries of both. Of two for one seed, the one that completed stands, then the one
        that was checked again last, then that with more tries, then this ledger's own.
        """
        merged = self
        for entry in other.entries:
            mine = self.entry(entry.seed)
            if mine is None or _weight(entry) > _weight(mine):
                merged = merged.with_entry(entry)
        return merged

    def completed(self) -> list[SeedEntry]:
        return [entry for entry in self.entries if entry.status == "completed"]

    def losses(self) -> list[float]:
        """Nats a token of every completed seed."""
        return [entry.figures.val_loss_nats for entry in self.completed() if entry.figures]

    def next_seeds(self, new: int) -> list[int]:
        """Every failed seed, and then the next `new` that have no entry yet, up to the declared maximum."""
        seeds = range(self.first_seed, self.first_seed + self.max_seeds)
        failed = [entry.seed for entry in self.entries if entry.status == "failed"]
        return [*failed, *[seed for seed in seeds if self.entry(seed) is None][:new]]


class LedgerRecord(Schema):
    """A ledger as it lies in the store.

    Its version is its own: figures of seeds cannot be made again, as results of stages can, when these
    records change.
    """

    schema_version: Literal[2] = LEDGER_VERSION
    ledger: Ledger


def _weight(entry: SeedEntry) -> tuple[bool, str, int]:
    completed = entry.status == "completed"
    return completed, entry.rechecked_at, 0 if completed else entry.tries


class Summary(Schema):
    """Mean and spread of a sample. The interval is Student's t, 95 %."""

    count: PositiveInt
    mean: float
    std: float = Field(description="of the sample (n − 1)")
    low: float
    high: float


class Difference(Schema):
    """Mean of the differences between two runs of each seed. The interval is Student's t, 95 %, two-sided."""

    count: PositiveInt
    mean: float
    std: float = Field(description="of the differences (n − 1)")
    low: float
    high: float

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


class Comparison(Schema):
    """Is the mean at least `margin` below the mark? One-sided; small p speaks for yes."""

    test: Literal["one-sample t", "Welch"]
    mark: float = Field(description="nats a token; the other ledger's mean for Welch")
    margin: float = Field(description="nats a token by which it has to be better")
    better_by: float = Field(description="mark minus mean; positive is better")
    low: float = Field(description="95 % interval of better_by")
    high: float
    statistic: float | None = Field(
        description="None: all values are equal, and the test divides by their deviation"
    )
    p_value: float
    alpha: PositiveFloat
    look: PositiveInt = Field(
        description="sample sizes at which the ledger has been looked at, this one included"
    )
    planned_looks: PositiveInt

    @property
    def passed(self) -> bool:
        return self.p_value < self.alpha

    @property
    def alpha_each_look(self) -> float:
        """Bonferroni: with this at every planned look, the chance of a false alarm over all of them stays
        below alpha.
        """
        return self.alpha / self.planned_looks

    @property
    def passed_for_all_looks(self) -> bool:
        return self.p_value < self.alpha_each_look
