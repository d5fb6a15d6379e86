"""The CPU's own gradients against autograd's in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.cpu_operations import CausalAttention, LeakyReluSquared, ReluSquared, RmsNorm
from stages.core.model import rms_norm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every score, then the mask: the slow and obvious way."""
    group, asked, tokens = q.size(2) // k.size(2), q.size(1), k.size(1)
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bqhe,bthe->bhqt", q, k) * q.size(3) ** -0.5
    future = torch.ones(asked, tokens, dtype=torch.bool).triu(tokens - asked + 1)
    return torch.einsum("bhqt,bthe->bqhe", scores.masked_fill(future, float("-inf")).softmax(-1), v)


def outputs_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y.double() * weights).sum(), inputs)]


def assert_same(ours: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    tolerance = TOLERANCE[inputs[0].dtype]
    found = outputs_and_gradients(ours, inputs)
    for mine, true in zip(found, outputs_and_gradients(exact, [x.double() for x in inputs]), strict=True):
        assert mine.shape == true.shape
        assert (mine.double() - true).norm() <= tolerance * true.norm()


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 2, 16)])
def test_norm(dtype: torch.dtype, scale: float, shape: tuple[int, ...]) -> None:
    x = 3 * random(*shape, dtype=dtype, seed=1)
    assert_same(lambda x: RmsNorm.apply(x, scale), lambda x: F.rms_norm(x, (x.size(-1),)) * scale, [x])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_zero_vector_has_no_norm_and_a_finite_gradient(dtype: torch.dtype) -> None:
    y, gradient = outputs_and_gradients(lambda x: RmsNorm.apply(x, 1.0), [torch.zeros(2, 8, dtype=dtype)])
    assert not y.any()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_squared_relu(dtype: torch.dtype) -> None:
    assert_same(ReluSquared.apply, lambda x: F.relu(x).square(), [random(4, 33, dtype=dtype, seed=2)])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("slope", [0.3, 0.5, 1.0])
def test_squared_leaky_relu(dtype: torch.dtype, slope: float) -> None:
    assert_same(
        lambda x: LeakyReluSquared.apply(x, slope),
        lambda x: torch.where(x > 0, x * x, slope**2 * x * x),
        [random(4, 33, dtype=dtype, seed=2)],
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("asked", "tokens"), [(16, 16), (13, 13), (5, 13), (1, 9)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 1), (4, 2), (2, 2)])
@pytest.mark.parametrize("block", [4, 8, 64])
def test_attention(
    dtype: torch.dtype, asked: int, tokens: int, heads: int, kv_heads: int, block: int
) -> None:
    q = random(2, asked, heads, 8, dtype=dtype, seed=3)
    k, v = (random(2, tokens, kv_heads, 8, dtype=dtype, seed=seed) for seed in (4, 5))
    assert_same(lambda q, k, v: CausalAttention.apply(q, k, v, block), plain_attention, [q, k, v])


def test_scoring_and_training_norm_alike() -> None:
    x = random(3, 5, 32, dtype=torch.float32, seed=6).requires_grad_()
    trained = rms_norm(x, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(trained, rms_norm(x, 0.5), rtol=1e-6, atol=1e-7)
