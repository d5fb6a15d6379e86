from dataclasses import replace

import pytest
import torch

from presets import PRESETS
from schemas.train_settings import OptimizerSettings
from stages.core.model import GPT
from stages.core.parameter_groups import group_parameters, make_optimizers


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_parameter_of_every_preset_is_in_exactly_one_group(preset: str) -> None:
    settings = PRESETS[preset]().train
    with torch.device("meta"):
        model = GPT(settings.model)
    groups = group_parameters(model, settings.optimizer)
    listed = [name for group in groups for name in group.names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    by_name = {group.name: group for group in groups}
    assert set(by_name["embeddings"].names) <= {"tok_emb.weight", "value_embedding.table.weight"}
    assert all(name.endswith(".weight") for name in by_name["matrices"].names)


def test_an_untied_head_is_updated_as_an_embedding_and_gates_as_scalars() -> None:
    settings = replace(
        PRESETS["smoke"]().train.model, tied_head=False, head_gate=True, skip_gates=True,
        parallel_residuals="two_lanes", parallel_first_layer=2,
    )  # fmt: skip
    model = GPT(settings)
    by_name = {group.name: group.names for group in group_parameters(model, OptimizerSettings())}
    assert "head.weight" in by_name["embeddings"]
    assert {"skip_gates", "blocks.1.attn.head_gate", "blocks.2.lanes"} <= set(by_name["scalars"])


def test_the_reference_preset_names_what_it_never_trains() -> None:
    settings = PRESETS["reference"]().train
    with torch.device("meta"):
        model = GPT(settings.model)
    groups = {group.name: group for group in group_parameters(model, settings.optimizer)}
    assert set(groups["frozen"].names) == {"value_embedding.table.weight", "value_embedding.proj.weight"}
    assert len(groups["idle"].names) == 9


def test_optimizers_hold_exactly_the_trained_parameters() -> None:
    model = GPT(PRESETS["smoke"]().train.model)
    settings = OptimizerSettings(frozen=("smear.*",))
    optimizers = make_optimizers(model, group_parameters(model, settings), settings, torch.float32)
    held = [
        param for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]
    ]
    assert len({id(param) for param in held}) == len(held)
    assert {id(param) for param in held} == {id(param) for param in model.parameters() if param.requires_grad}
    assert not model.smear.gate.requires_grad


def test_a_frozen_pattern_that_matches_nothing_is_refused() -> None:
    model = GPT(PRESETS["smoke"]().train.model)
    with pytest.raises(ValueError, match="no parameter matches 'value_embeding"):
        group_parameters(model, OptimizerSettings(frozen=("value_embeding.*",)))


def test_embeddings_and_scalars_decay_apart_and_share_the_decay_of_adamw_otherwise() -> None:
    model = GPT(PRESETS["smoke"]().train.model)
    settings = OptimizerSettings(adam_weight_decay=0.5, embedding_weight_decay=0.25, scalar_weight_decay=0.0)
    apart = {group.name: group.weight_decay for group in group_parameters(model, settings)}
    assert (apart["embeddings"], apart["scalars"]) == (0.25, 0.0)
    shared = {
        group.name: group.weight_decay
        for group in group_parameters(model, OptimizerSettings(adam_weight_decay=0.5))
    }
    assert (shared["embeddings"], shared["scalars"]) == (0.5, 0.5)
    held = {
        param_group["weight_decay"]
        for optimizer in make_optimizers(model, group_parameters(model, settings), settings, torch.float32)
        for param_group in optimizer.param_groups
    }
    assert held == {settings.muon_weight_decay, 0.25, 0.0}
