"""Scores of held-out text while a model trains, with the clock stopped, and the rules that may end the run.

All processes score together, each its share of the windows, as `merge` does. Whether a score is due follows
from the clock that they agree on. Every process gets the same sums. So all of them go on or all stop.

A score is that of the weights as they are: by a second model without QAT, kernels of our own and compiler,
because `merge` scores the last iterate so. Its windows are those of `merge`. It draws no random number.

The key of a training does not cover this module: a trainer that scores leaves the weights of one that does
not, bit for bit (tests/stages/training/test_held_out.py).
"""

import logging
import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from schemas.errors import StageError
from schemas.held_out import CurvePoint, HeldOut
from schemas.train_settings import TrainSettings
from stages.core.bits_per_byte import TokenBytes, load_token_bytes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.schedule import loops_on_at, progress_at
from stages.core.scoring import score
from stages.core.trainer import Hooks, Pending, StepMetrics, TrainedModel, Trainer, TrainState
from stages.training.job import BrokenRuleError
from stages.training.stop_rules import broken_rule

log = logging.getLogger("stages.train")

_SLACK = 1e-9
"""By which a share may be short of a mark and count as there: 3 · 0.05 is not 0.15."""


@dataclass(frozen=True)
class ScoredStep(StepMetrics):
    """One optimizer step, and the held-out score after it; None at a step without one."""

    val_nats: float | None = None
    val_bpb: float | None = None


@dataclass(frozen=True)
class HeldOutText:
    """Validation shards as one stream, the bytes of their tokens, and what is asked of them.

    `earlier` holds the scores that a resumed training already has.
    """

    asked: HeldOut
    stream: TokenStream
    table: TokenBytes
    earlier: tuple[CurvePoint, ...] = ()


def read_held_out(
    asked: HeldOut, shards: Sequence[Path], tokenizer: Path, earlier: tuple[CurvePoint, ...]
) -> HeldOutText:
    """Raises StageError for a tokenizer or shards that cannot be scored with."""
    try:
        return HeldOutText(asked, TokenStream(list(shards)), load_token_bytes(tokenizer), earlier)
    except (ValueError, RuntimeError) as error:
        raise StageError(f"validate_every: the validation split cannot be scored: {error}") from error


class ScoringTrainer(Trainer):
    """A trainer that scores held-out text at shares of the run and after the last step.

    The clock stands still meanwhile. Once a rule is broken, `run` raises BrokenRuleError before the next step
    or at its end; what the scored step was to leave, its metrics and its snapshot, is left before.
    """

    def __init__(
        self,
        settings: TrainSettings,
        shards: list[Path],
        hooks: Hooks,
        resume: TrainState | None,
        text: HeldOutText,
    ) -> None:
        super().__init__(settings, shards, hooks, resume)
        self.text, self.points = text, text.earlier
        self.hook_seconds["scoring"] = 0.0
        self._judge = GPT(settings.model).to(self.device)
        self._marks = _marks(text.asked)
        self._passed = self._marks_passed()
        self.broken = broken_rule(text.asked, self.points)

    def run(self) -> TrainedModel:
        trained = super().run()
        if self.broken:
            raise BrokenRuleError(self.broken)
        return trained

    def _row(self, lr_scale: float, momentum: float, qat_on: bool, snapshot: bool) -> StepMetrics:
        row = super()._row(lr_scale, momentum, qat_on, snapshot)
        passed = self._marks_passed()
        if passed == self._passed:
            return ScoredStep(**vars(row))
        self._passed = passed
        point = self._score()
        if point is None:
            return ScoredStep(**vars(row))
        self.points = (*self.points, point)
        self.broken = broken_rule(self.text.asked, self.points)
        return ScoredStep(**vars(row), val_nats=point.val_nats, val_bpb=point.val_bpb)

    def _flush(self, pending: list[Pending], keep: int) -> None:
        super()._flush(pending, 0 if self.broken else keep)

    def _step(self, step: int, lr_scale: float, momentum: float, qat_on: bool) -> tuple[Tensor, Tensor]:
        if self.broken:
            raise BrokenRuleError(self.broken)
        return super()._step(step, lr_scale, momentum, qat_on)

    def _marks_passed(self) -> int:
        return bisect_right(self._marks, progress_at(self.clock, self.settings.schedule) + _SLACK)

    def _score(self) -> CurvePoint | None:
        """The score of the present weights; None where it is not finite, which the loss will show too."""
        self._wait_for_device(everything=True)
        stopped = time.perf_counter()
        with torch.no_grad():
            for own, trained in zip(self._judge.parameters(), self.model.parameters(), strict=True):
                own.copy_(trained)
        schedule, asked = self.settings.schedule, self.text.asked
        self._judge.use_loops(loops_on_at(self.clock, schedule))
        num_targets = len(self.text.stream) - 1
        share = min(1.0, asked.tokens / num_targets) if asked.tokens else 1.0
        sums = score(
            self._judge,
            self.text.stream,
            self.text.table,
            asked.scoring,
            asked.scoring.sequence_length,
            self.dtype,
            share=share,
        )
        nats, bpb = self._same_everywhere(sums.loss, sums.bpb)
        self._wait_for_device(everything=True)
        seconds = time.perf_counter() - stopped
        self.began += seconds
        self.hook_seconds["scoring"] += seconds
        if not (math.isfinite(nats) and math.isfinite(bpb)):
            return None
        done = progress_at(self.clock, schedule)
        if self.rank == 0:
            words = "held-out text after step %d (%.0f %%): val_bpb %.4f, %.4f nats a token"
            log.info(words, self.clock.steps, 100 * done, bpb, nats)
        return CurvePoint(step=self.clock.steps, share=done, val_nats=nats, val_bpb=bpb)

    def _same_everywhere(self, *figures: float) -> list[float]:
        """The first process's figures: whether training goes on must not hang on a last digit."""
        told = torch.tensor(figures, dtype=torch.float64)
        if self.world > 1:
            dist.broadcast(told, src=0)
        return told.tolist()


def _marks(asked: HeldOut) -> list[float]:
    """Shares of the run after which a score is due, ascending: every so often, at each rule, and the end."""
    regular = (asked.every * count for count in range(1, int(1 / asked.every + _SLACK) + 1))
    return sorted({1.0, *regular, *(rule.at for rule in asked.rules)})
