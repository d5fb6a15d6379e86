"""The results of a run's stages in one record: what the audit measures and the report tells."""

from typing import Any, cast

from schemas.base import Schema
from schemas.check_size import SizeReport
from schemas.evaluate import Evaluation
from schemas.merge import MergedModel
from schemas.package import Package
from schemas.quantize import PackedModel
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import TrainingResult


class RunResults(Schema):
    """What the stages from tokenization to evaluation handed on, in the order of the chain.

    Each field is also the name of the input by which the audit and the report take it.
    """

    tokenized: TokenizedCorpus
    trained: TrainingResult
    merged: MergedModel
    packed: PackedModel
    package: Package
    size: SizeReport
    evaluation: Evaluation

    @classmethod
    def types(cls) -> dict[str, type[Schema]]:
        """Name and type of each stage's result."""
        fields = RunResults.model_fields.items()
        return {name: cast(type[Schema], field.annotation) for name, field in fields}

    def by_name(self) -> dict[str, Any]:
        """Each stage's result by its name."""
        return {name: getattr(self, name) for name in RunResults.model_fields}

    @property
    def val_bpb_last(self) -> float:
        """Bits per byte of the last iterate, non-overlapping windows."""
        return self.merged.last.bpb

    @property
    def val_bpb_merged(self) -> float:
        """Bits per byte of the averaged weights, non-overlapping windows."""
        return self.merged.score.bpb

    @property
    def val_bpb_quantized(self) -> float:
        """Bits per byte of the model that ships, non-overlapping windows."""
        return self.evaluation.non_overlapping.bpb

    @property
    def val_bpb_quantized_sliding(self) -> float | None:
        """The same with sliding windows; None where they were not scored."""
        return self.evaluation.sliding.bpb if self.evaluation.sliding else None

    @property
    def val_bpb_test_time_training(self) -> float | None:
        """Bits per byte inside documents with test-time training; None where it is off or its clock ran
        out.
        """
        learned = self.evaluation.test_time_training
        return learned.adapted.bpb if learned and learned.adapted else None
