"""Attention over the nearest positions against its definition in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.core.attention import attend_causally, attend_nearby
from tests.stages.core.test_model import make, random_ids


def slow_attention(q: Tensor, k: Tensor, v: Tensor, reach: int) -> Tensor:
    """One query after another: softmax over the products with the keys that it may see."""
    batch, asked, heads, dims = q.shape
    tokens, groups = k.size(1), heads // k.size(2)
    result = torch.empty_like(q)
    for row in range(batch):
        for head in range(heads):
            for place in range(asked):
                position = tokens - asked + place
                near = slice(max(0, position - reach + 1), position + 1)
                products = k[row, near, head // groups] @ q[row, place, head] / dims**0.5
                result[row, place, head] = products.softmax(0) @ v[row, near, head // groups]
    return result


@settings(deadline=None)
@given(tokens=st.integers(1, 40), reach=st.integers(1, 45), data=st.data())
def test_each_position_sees_itself_and_the_nearest_before_it(
    tokens: int, reach: int, data: st.DataObject
) -> None:
    asked = data.draw(st.integers(1, tokens))
    generator = torch.Generator().manual_seed(tokens * 50 + reach)
    q = torch.randn(2, asked, 4, 6, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, tokens, 2, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(attend_nearby(q, k, v, reach), slow_attention(q, k, v, reach))


@torch.inference_mode()
def test_bfloat16_comes_close_to_float64() -> None:
    q, k, v = (torch.randn(1, 96, heads, 16, dtype=torch.float64) for heads in (4, 2, 2))
    half = attend_nearby(q.bfloat16(), k.bfloat16(), v.bfloat16(), 32).double()
    torch.testing.assert_close(half, slow_attention(q, k, v, 32), rtol=0.05, atol=0.05)


def test_a_reach_over_all_tokens_is_causal_attention() -> None:
    q, k, v = (torch.randn(1, 20, heads, 8) for heads in (4, 2, 2))
    torch.testing.assert_close(attend_nearby(q, k, v, 20), attend_causally(q, k, v), rtol=0, atol=0)


@pytest.mark.parametrize("num_last", [None, 1, 5])
@torch.inference_mode()
def test_the_model_attends_to_the_nearest_and_never_ahead(num_last: int | None) -> None:
    model, ids = make(), random_ids()
    full = model.hidden(ids, num_last=num_last)
    torch.testing.assert_close(model.hidden(ids, num_last=num_last, reach=ids.size(1)), full)
    assert not torch.allclose(model.hidden(ids, num_last=num_last, reach=3), full, atol=1e-4)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 7 + 1
    before = model.hidden(ids, reach=3)[:, :-1]
    torch.testing.assert_close(model.hidden(changed, reach=3)[:, :-1], before)
