"""The peers compute what we compute: otherwise a comparison of speed would compare two different things."""

import math

import numpy as np
import pytest
import torch

from benchmarks.plain_script import PlainGPT, PlainTraining, newton_schulz, sliding_window_bpb
from schemas.model_settings import ModelSettings
from schemas.scoring_settings import ScoringSettings
from schemas.train_settings import OptimizerSettings
from stages.core.bits_per_byte import TokenBytes
from stages.core.model import GPT
from stages.core.muon import orthogonalize
from stages.core.parameter_groups import group_parameters
from stages.core.scoring import score


@pytest.fixture
def models(tiny_model: ModelSettings, tiny_state: dict[str, torch.Tensor]) -> tuple[GPT, PlainGPT]:
    ours, plain = GPT(tiny_model), PlainGPT(tiny_model)
    ours.load_state_dict(tiny_state)
    plain.load_state_dict(tiny_state)
    return ours, plain


def test_the_plain_model_is_ours(models: tuple[GPT, PlainGPT]) -> None:
    ours, plain = models
    ids = torch.randint(1, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    ids[:, 20] = 1
    with torch.no_grad():
        exact = ours.logits(ours.hidden(ids))
        difference = (plain.logits(ids) - exact).square().mean() / exact.square().mean()
    assert difference < 1e-3  # of the energy: bfloat16's rounding and no more


def test_its_optimizers_hold_every_parameter_once_in_our_groups(tiny_model: ModelSettings) -> None:
    script = PlainTraining(tiny_model, OptimizerSettings())
    names = {param: name for name, param in script.model.named_parameters()}
    held = [
        {names[param] for param in group["params"]}
        for optimizer in script.optimizers
        for group in optimizer.param_groups
    ]
    groups = {
        group.name: set(group.names) for group in group_parameters(GPT(tiny_model), OptimizerSettings())
    }
    assert held == [groups["matrices"], groups["embeddings"], groups["scalars"]]


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_its_orthogonalisation_is_ours(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        newton_schulz(matrix, 5), orthogonalize(matrix[None].bfloat16(), 5)[0], rtol=0.05, atol=0.02
    )


class _Uniform:
    """A model that finds every token equally likely."""

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, 300)


@pytest.mark.parametrize("num_tokens", [300, 333])
def test_its_windows_score_every_target_once_like_ours(models: tuple[GPT, PlainGPT], num_tokens: int) -> None:
    tokens = np.random.default_rng(0).integers(1, 300, num_tokens).astype(np.uint16)
    generator = np.random.default_rng(1)
    table = TokenBytes(generator.integers(1, 4, 300), generator.random(300) < 0.3, np.arange(300) < 3)
    columns = [torch.from_numpy(column) for column in (table.base_bytes, table.leading_space, table.boundary)]

    class Stream:
        def __len__(self) -> int:
            return num_tokens

        def read(self, start: int, count: int) -> np.ndarray:
            return tokens[start : start + count].astype(np.int64)

    plain = sliding_window_bpb(models[1], tokens, 64, 16, 4, *columns)
    ours = score(models[0], Stream(), table, ScoringSettings(64, 16, 256), 16, torch.bfloat16)
    assert ours.bpb == pytest.approx(plain, rel=2e-3)
    uniform = sliding_window_bpb(_Uniform(), tokens, 64, 16, 4, *columns)
    assert uniform == pytest.approx(ours.num_targets * math.log2(300) / ours.num_bytes)
