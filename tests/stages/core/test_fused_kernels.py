"""The Triton kernels against plain PyTorch: on a GPU in bfloat16, or with TRITON_INTERPRET=1 on the CPU
in float32.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.model_settings import ModelSettings
from stages.core.attention import rotary_angles, rotate_partly
from stages.core.model import GPT, mix_and_norm, rms_norm

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA GPU, or Triton and TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")

from stages.core import fused_kernels

ON_GPU = torch.cuda.is_available()
DEVICE, DTYPE, TOLERANCE = ("cuda", torch.bfloat16, 6e-3) if ON_GPU else ("cpu", torch.float32, 1e-5)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_kernels, "UP_TILE", (64, 32, 16, 4, 2, 2))
    monkeypatch.setattr(fused_kernels, "DOWN_BACKWARD_TILE", (64, 32, 16, 4, 2, 1))


def leaf(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype).requires_grad_()


def assert_same(fused: tuple[Tensor, ...], plain: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
    """Values and gradients for random output gradients, by relative error of the whole tensor."""
    grads = [torch.randn_like(value) for value in plain]
    both = (
        [*fused, *torch.autograd.grad(fused, inputs, grads)],
        [*plain, *torch.autograd.grad(plain, inputs, grads)],
    )
    for ours, reference in zip(*both, strict=True):
        assert ours.shape == reference.shape
        assert (
            float(
                (ours.detach().double() - reference.detach().double()).norm()
                / reference.detach().double().norm()
            )
            < TOLERANCE
        )


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dims", "rope_dims"), [(4, 2, 16, 8), (2, 1, 64, 16), (3, 3, 32, 32), (2, 2, 16, 0)]
)
def test_heads_are_normalised_rotated_and_gained_as_in_plain_pytorch(
    heads: int, kv_heads: int, dims: int, rope_dims: int
) -> None:
    qkv, gain = leaf(2, 37, (heads + 2 * kv_heads) * dims), leaf(heads, dtype=torch.float32)
    rotation = rotary_angles(37, rope_dims, 10_000.0, torch.device(DEVICE))
    parts = qkv.split((heads * dims, kv_heads * dims, kv_heads * dims), dim=-1)
    q, k, v = (part.unflatten(-1, (-1, dims)) for part in parts)
    plain = (
        rotate_partly(rms_norm(q), *rotation) * gain.to(DTYPE)[:, None],
        rotate_partly(rms_norm(k), *rotation),
        v,
    )
    assert_same(fused_kernels.prepare_heads(qkv, rotation, gain, kv_heads), plain, (qkv, gain))


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "dim", "hidden"), [(25, 48, 72), (64, 32, 64), (130, 16, 40)])
def test_the_mlp_squares_and_its_gradient_knows_the_sign(
    rows: int, dim: int, hidden: int, slope: float
) -> None:
    inputs = (leaf(2, rows, dim), leaf(hidden, dim), leaf(dim, hidden))
    plain = F.linear(F.leaky_relu(F.linear(inputs[0], inputs[1]), slope).square(), inputs[2])
    assert_same((fused_kernels.relu_squared_mlp(*inputs, slope),), (plain,), inputs)


@pytest.mark.parametrize("dim", [24, 64])
def test_the_mixs_gradient_is_that_of_plain_pytorch(dim: int) -> None:
    inputs = (leaf(2, 37, dim), leaf(2, 37, dim), leaf(2, dim, dtype=torch.float32))
    assert_same(fused_kernels.mix_and_norm_with_gradient(*inputs, 0.7), mix_and_norm(*inputs, 0.7), inputs)


WINNING = {
    "leaky_slope": 0.5,
    "loop_passes": 2,
    "loop_layers": (0, 1),
    "skip_gates": True,
    "parallel_first_layer": 2,
    "head_gate": True,
    "smear_form": "by_input",
    "tied_head": False,
}


@pytest.mark.parametrize(
    "change",
    [{}, {**WINNING, "parallel_residuals": "one_lane"}, {**WINNING, "parallel_residuals": "two_lanes"}],
    ids=["record", "one lane", "two lanes"],
)
def test_a_whole_model_compiles_in_one_piece_and_gives_the_same_gradients(change: dict) -> None:
    settings = ModelSettings(
        vocab_size=64, num_layers=3, model_dim=64, num_heads=4, num_kv_heads=2, mlp_hidden=48, rope_dims=8,
        xsa_layers=2, value_embedding_dim=8, value_embedding_layers=(2,), **change,
    )  # fmt: skip
    ids = torch.randint(3, 64, (2, 33), device=DEVICE)
    models = []
    for fused in (False, True):
        model = GPT(settings)
        model.init_weights(0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # zero-initialised projections would hide most of the model
            for param in model.parameters():
                param.add_(0.1 * torch.randn(param.shape, generator=generator))
        model.to(DEVICE)
        network = model
        if fused:
            fused_kernels.install(model)
            network = torch.compile(model, backend="aot_eager", dynamic=False, fullgraph=True)  # type: ignore[assignment]
        network(ids[:, :-1], ids[:, 1:], DTYPE).backward()
        models.append(model)
    for (name, plain), fused_param in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert plain.grad is not None
        assert fused_param.grad is not None
        error = float((fused_param.grad - plain.grad).norm() / plain.grad.norm())
        assert error < (0.2 if ON_GPU else 1e-4), name  # a scalar gradient sums over all tokens
