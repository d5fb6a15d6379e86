"""What training did to each parameter, measured: also where an optimizer lacks one by mistake, which no
setting tells.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import ParameterChange, ParameterGroup
from schemas.train_settings import TrainSettings
from stages.core.trainer import Hooks, StepMetrics, Trainer
from stages.training.account import account_of_changes, account_of_groups, decay_factor

TABLE = "value_embedding.table.weight"


def account(
    settings: TrainSettings, tokens: TokenizedCorpus, forget: str | None = None
) -> tuple[tuple[ParameterGroup, ...], dict[str, ParameterChange]]:
    """Train in this process, with one parameter taken out of its optimizer behind the settings' back."""
    rows: list[StepMetrics] = []
    trainer = Trainer(settings, [Path(ref.path) for ref in tokens.train_shards], Hooks(step=rows.append))
    params = dict(trainer.model.named_parameters())
    for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
        group["params"] = [
            param for param in group["params"] if forget is None or param is not params[forget]
        ]
    trained = trainer.run()
    assert trainer.model.qat_grid == ("gptq_lite" if settings.qat.start_lr_scale else None)
    groups = account_of_groups(trainer, [row.lr_scale for row in rows])
    changes = account_of_changes(trainer, groups, trained.initial, trainer.weights())
    return groups, {change.name: change for change in changes}


def test_a_parameter_that_the_optimizer_lacks_is_in_no_optimizer_and_did_not_learn(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus
) -> None:
    groups, changes = account(smoke_training, tiny_tokens, forget=TABLE)
    assert [(group.name, group.optimizer) for group in groups if TABLE in group.parameters] == [
        ("embeddings", "none")
    ]
    assert changes[TABLE].learned_rms == changes[TABLE].change_rms == 0
    assert all(change.learned_rms > 0 for name, change in changes.items() if name != TABLE)
    assert sorted(name for group in groups for name in group.parameters) == sorted(changes)


def test_weight_decay_alone_is_no_learning(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus
) -> None:
    """With table and projection frozen the scale gets no gradient; decay still shrinks it."""
    frozen = replace(
        smoke_training.optimizer, frozen=(TABLE, "value_embedding.proj.weight"), adam_weight_decay=0.5
    )
    groups, changes = account(replace(smoke_training, optimizer=frozen), tiny_tokens)
    scale = changes["value_embedding.scales.2"]
    factor = next(group.decay_factor for group in groups if group.name == "scalars")
    assert scale.change_rms > 0.05
    assert scale.final_rms == pytest.approx(factor, rel=1e-5)
    assert scale.learned_rms < 1e-5


def test_the_grid_of_late_qat_is_that_of_the_live_model(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus
) -> None:
    _, changes = account(smoke_training, tiny_tokens)
    assert changes["blocks.0.attn.q.weight"].qat_bits == 8
    assert changes["blocks.1.attn.q.weight"].qat_bits == 6
    assert changes["tok_emb.weight"].qat_bits is None
    assert changes["skip_weights"].qat_bits is None
    _, changes = account(
        replace(smoke_training, qat=replace(smoke_training.qat, start_lr_scale=0.0)), tiny_tokens
    )
    assert {change.qat_bits for change in changes.values()} == {None}


def test_the_decay_factor_is_what_the_optimizer_leaves_of_a_weight_without_gradient() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.3)
    scales = [1.0, 1.0, 0.5, 0.25]
    for scale in scales:
        optimizer.param_groups[0]["lr"] = 0.1 * scale
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    expected = decay_factor(0.1 * 0.3, scales)
    torch.testing.assert_close(weight.detach(), expected * torch.tensor([2.0, -3.0]))
    assert decay_factor(0.0, scales) == 1.0
