"""Scores of held-out text while a model trains: they change nothing, tell the truth, and may end the run."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from presets import load_preset
from schemas.held_out import CurvePoint, HeldOut, StopRule
from schemas.scoring_settings import ScoringSettings
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train_settings import TrainSettings
from stages.core.bits_per_byte import TokenBytes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.scoring import score
from stages.core.trainer import Hooks, StepMetrics, Trainer, TrainState
from stages.store.machine import resolve_precision
from stages.training import held_out
from stages.training.held_out import HeldOutText, ScoredStep, ScoringTrainer
from stages.training.job import BrokenRuleError

TABLE = TokenBytes(np.full(320, 3), np.zeros(320, bool), np.zeros(320, bool))
WINDOWS = ScoringSettings(sequence_length=64, stride=32, batch_tokens=512)


def asked(**changes: object) -> HeldOut:
    return HeldOut(every=0.25, tokens=0, scoring=WINDOWS).derive(**changes)


class Run:
    """One training in this process; with `text` it scores held-out text."""

    def __init__(
        self,
        settings: TrainSettings,
        tokens: TokenizedCorpus,
        wanted: HeldOut | None = None,
        resume: TrainState | None = None,
        earlier: tuple[CurvePoint, ...] = (),
    ) -> None:
        self.rows: list[StepMetrics] = []
        self.states: list[TrainState] = []
        self.snapshots: dict[int, dict[str, torch.Tensor]] = {}
        hooks = Hooks(
            self.rows.append,
            lambda step, scale, qat, weights: self.snapshots.update({step: weights}),
            lambda: True,
            self.states.append,
        )
        shards = [Path(ref.path) for ref in tokens.train_shards]
        self.stream = TokenStream([Path(ref.path) for ref in tokens.val_shards])
        self.trainer = Trainer(settings, shards, hooks, resume)
        if wanted is not None:
            text = HeldOutText(wanted, self.stream, TABLE, earlier)
            self.trainer = ScoringTrainer(settings, shards, hooks, resume, text)

    def points(self) -> dict[int, float]:
        return {
            row.step: row.val_bpb
            for row in self.rows
            if isinstance(row, ScoredStep) and row.val_bpb is not None
        }


@pytest.fixture(scope="module")
def scored(tiny_tokens: TokenizedCorpus) -> Run:
    """Twelve steps, scored after each quarter."""
    run = Run(_twelve_steps(), tiny_tokens, asked())
    run.trainer.run()
    return run


def _twelve_steps() -> TrainSettings:
    settings: TrainSettings = resolve_precision(load_preset("smoke").with_qat_grid().train)
    return replace(settings, schedule=replace(settings.schedule, max_steps=12))


def test_scores_change_no_bit_of_the_training(scored: Run, tiny_tokens: TokenizedCorpus) -> None:
    plain = Run(_twelve_steps(), tiny_tokens)
    plain.trainer.run()
    mine, theirs = scored.trainer.state(), plain.trainer.state()
    assert mine.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in mine.tensors)  # rng too
    assert scored.snapshots.keys() == plain.snapshots.keys() != set()
    assert [row.loss for row in scored.rows] == [row.loss for row in plain.rows]


def test_the_last_point_is_the_score_of_the_last_iterate(scored: Run) -> None:
    """As `merge` scores it: a fresh model with the final weights, without QAT."""
    assert list(scored.points()) == [3, 6, 9, 12]
    model = GPT(scored.trainer.settings.model)
    model.load_state_dict(scored.trainer.weights())
    told = score(model, scored.stream, TABLE, WINDOWS, WINDOWS.sequence_length, scored.trainer.dtype)
    assert scored.trainer.last_qat_on
    assert scored.points()[12] == pytest.approx(told.bpb, abs=1e-6)


def test_a_part_of_the_text_is_spread_over_all_of_it(scored: Run) -> None:
    model, length = GPT(scored.trainer.settings.model), WINDOWS.sequence_length
    model.load_state_dict(scored.trainer.weights())
    read: list[int] = []
    stream = scored.stream

    class Told(TokenStream):
        def __init__(self) -> None:
            self.__dict__ = stream.__dict__

        def read(self, start: int, count: int) -> np.ndarray:
            read.append(start // length)
            return super().read(start, count)

    sums = score(model, Told(), TABLE, WINDOWS, length, torch.float32, share=0.3)
    assert read == [0, 3, 6, 10]
    assert sums.num_targets == 3 * length + 699 % length


def test_the_clock_stands_still_while_text_is_scored(
    tiny_tokens: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_score = held_out.score

    def slow(*given: object, **named: object) -> object:
        time.sleep(0.3)
        return true_score(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(held_out, "score", slow)
    settings = _twelve_steps()
    settings = replace(settings, schedule=replace(settings.schedule, max_steps=4))
    run = Run(settings, tiny_tokens, asked())
    began = time.perf_counter()
    trained = run.trainer.run()
    wall = time.perf_counter() - began
    assert trained.hook_seconds["scoring"] >= 4 * 0.3
    assert trained.seconds <= wall - 4 * 0.3


def test_a_broken_rule_ends_the_run_at_its_step_and_leaves_what_the_step_left(
    scored: Run, tiny_tokens: TokenizedCorpus
) -> None:
    """From the checkpoint of that step the run goes on to the same bits, without the rule."""
    rule = StopRule(figure="val_bpb", limit=0.1, at=0.4)
    stopped = Run(_twelve_steps(), tiny_tokens, asked(rules=(rule,)))
    with pytest.raises(BrokenRuleError, match=r"at step 5 \(42%\): val_bpb is .* 'val_bpb > 0.1 at 40%'"):
        stopped.trainer.run()
    assert [row.step for row in stopped.rows] == [1, 2, 3, 4, 5]
    assert list(stopped.points()) == [3, 5]
    on = Run(_twelve_steps(), tiny_tokens, resume=stopped.trainer.state())
    on.trainer.run()
    ended = scored.trainer.weights()
    assert all(torch.equal(ended[name], tensor) for name, tensor in on.trainer.weights().items())


def test_a_resumed_run_remembers_the_score_that_broke_a_rule(tiny_tokens: TokenizedCorpus) -> None:
    rule = StopRule(figure="val_nats", limit=2.0, at=0.25)
    early = (CurvePoint(step=3, share=0.25, val_nats=3.0, val_bpb=1.5),)
    run = Run(_twelve_steps(), tiny_tokens, asked(rules=(rule,)), earlier=early)
    with pytest.raises(BrokenRuleError, match="at step 3"):
        run.trainer.run()
    assert run.rows == []
