"""Triton kernels for the training step on a Hopper GPU; model.py has the same operations in plain
PyTorch, as their reference.

`prepare_heads` reads the product of q, k and v once and writes normalised, rotated and gained heads;
`relu_squared_mlp` squares in the epilogue of the first product and keeps only the square, whose root is what
its gradient needs (with a leaky slope it keeps the root too, because the square has lost its sign); the
gradient of a block's mix and norm is one pass. All compute in float32 between
bfloat16 input and output; torch.compile sees opaque operators.

Triton comes with PyTorch's CUDA builds. Only training with `compute.fused_kernels` imports this module; a
submission holds it, and needs Triton, exactly when its recipe has that setting. Shape legend: B batch, T
tokens, N = B·T rows, D model dim, F hidden dim, H query heads, K key/value heads, E head dim. Persistent
matrix products after Triton's tutorial 09
(https://triton-lang.org/main/getting-started/tutorials/09-persistent-matmul.html).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from stages.core.cpu_operations import RMS_EPS
from stages.core.model import GPT, Block, mix_and_norm

ROWS_A_PROGRAM = 16
MIX_ROWS, MIX_PROGRAMS, MIX_WARPS = 2, 16, 2  # rows at once, programs a multiprocessor, warps
# Tiles of the MLP's products: rows, columns, depth, warps, stages, programs a multiprocessor. 128 divides the
# record's hidden width.
UP_TILE = (128, 128, 64, 4, 3, 2)
DOWN_BACKWARD_TILE = (128, 128, 32, 4, 4, 2)


def use_fused_kernels(model: GPT, device: torch.device) -> None:
    """Let `model` train with the kernels of this module.

    Raises ValueError when the GPU or the model's shapes do not allow it.
    """
    settings = model.settings
    major, minor = torch.cuda.get_device_capability(device)
    remedy = "leave train.compute.fused_kernels false"
    if major != 9:
        raise ValueError(
            "train.compute.fused_kernels = true: needs a Hopper GPU (capability 9.0); this one has "
            f"{major}.{minor}: {remedy}"
        )
    if (
        settings.head_dim < 16
        or settings.head_dim & (settings.head_dim - 1)
        or settings.model_dim % 8
        or settings.mlp_hidden % 8
    ):
        raise ValueError(
            f"train.compute.fused_kernels = true: a head's {settings.head_dim} dims must be a power of two "
            "from "
            f"16, model_dim = {settings.model_dim} and mlp_hidden = {settings.mlp_hidden} multiples of 8: "
            f"{remedy}"
        )
    install(model)


def install(model: GPT) -> None:
    """Put the kernels in the places that the model has for them."""
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attn.fused_heads, block.mlp.fused, block.mix_and_norm = (
            prepare_heads,
            relu_squared_mlp,
            mix_and_norm_with_gradient,
        )


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def _prepare_heads_kernel(
    qkv, cos, sin, gain, q, k, v, rows, tokens, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIMS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    dim = tl.arange(0, DIMS)[None, :]
    inside = row < rows
    source = qkv + row * ((HEADS + 2 * KV_HEADS) * DIMS) + head * DIMS
    own = tl.load(source + dim, mask=inside, other=0.0)
    if head >= HEADS + KV_HEADS:
        tl.store(v + row * (KV_HEADS * DIMS) + (head - HEADS - KV_HEADS) * DIMS + dim, own, mask=inside)
    else:
        wide = own.to(tl.float32)
        root = tl.rsqrt(tl.sum(wide * wide, axis=1, keep_dims=True) / DIMS + eps)
        turns = inside & (dim < 2 * HALF)
        partner = tl.load(source + tl.where(dim < HALF, dim + HALF, dim - HALF), mask=turns, other=0.0).to(
            tl.float32
        )
        angle = (row % tokens) * HALF + tl.where(dim < HALF, dim, dim - HALF)
        c = tl.load(cos + angle, mask=turns, other=1.0)
        s = tl.load(sin + angle, mask=turns, other=0.0)
        turned = (wide * c + partner * tl.where(dim < HALF, s, -s)) * root
        if head < HEADS:
            turned *= tl.load(gain + head)
            tl.store(q + row * (HEADS * DIMS) + head * DIMS + dim, turned.to(q.dtype.element_ty), mask=inside)
        else:
            tl.store(
                k + row * (KV_HEADS * DIMS) + (head - HEADS) * DIMS + dim,
                turned.to(k.dtype.element_ty),
                mask=inside,
            )


@triton.jit
def _prepare_heads_backward_kernel(
    dq, dk, dv, qkv, cos, sin, gain, dqkv, dgain, rows, tokens, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIMS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    dim = tl.arange(0, DIMS)[None, :]
    inside = row < rows
    place = row * ((HEADS + 2 * KV_HEADS) * DIMS) + head * DIMS + dim
    if head >= HEADS + KV_HEADS:
        passed_on = tl.load(
            dv + row * (KV_HEADS * DIMS) + (head - HEADS - KV_HEADS) * DIMS + dim, mask=inside, other=0.0
        )
        tl.store(dqkv + place, passed_on, mask=inside)
    else:
        if head < HEADS:
            grads = dq + row * (HEADS * DIMS) + head * DIMS
        else:
            grads = dk + row * (KV_HEADS * DIMS) + (head - HEADS) * DIMS
        factor = tl.load(gain + head, mask=head < HEADS, other=1.0)
        own = tl.load(qkv + place, mask=inside, other=0.0).to(tl.float32)
        root = tl.rsqrt(tl.sum(own * own, axis=1, keep_dims=True) / DIMS + eps)
        normed = own * root
        turns = inside & (dim < 2 * HALF)
        grad = tl.load(grads + dim, mask=inside, other=0.0).to(tl.float32)
        partner = tl.load(grads + tl.where(dim < HALF, dim + HALF, dim - HALF), mask=turns, other=0.0).to(
            tl.float32
        )
        angle = (row % tokens) * HALF + tl.where(dim < HALF, dim, dim - HALF)
        c = tl.load(cos + angle, mask=turns, other=1.0)
        s = tl.load(sin + angle, mask=turns, other=0.0)
        turned_back = grad * c - partner * tl.where(dim < HALF, s, -s)
        along = tl.sum(turned_back * normed, axis=1, keep_dims=True)
        result = factor * root * (turned_back - normed * (along / DIMS))
        tl.store(dqkv + place, result.to(dqkv.dtype.element_ty), mask=inside)
        if head < HEADS:
            tl.store(dgain + tl.program_id(0) * HEADS + head, tl.sum(along))


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _up_relu_squared_kernel(
    x, weight, out, root, rows, columns, depth, programs,
    SLOPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out (N, F) = root², root (N, F) = leaky_relu(x (N, D) · weight (F, D)ᵀ); x, weight, out and root are
    tensor descriptors. With SLOPE 0 root is not written.
    """
    across = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * across
    for tile in tl.range(tl.program_id(0), tiles, programs, flatten=True):
        row, column = (tile // across) * ROWS, (tile % across) * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(tl.cdiv(depth, DEPTH)):
            total = tl.dot(x.load([row, step * DEPTH]), weight.load([column, step * DEPTH]).T, total)
        # The next tile's loads overlap with the stores, which need less shared memory in halves.
        if SLOPE == 0.0:
            total = tl.maximum(total, 0.0)
        else:
            total = tl.where(total < 0.0, SLOPE * total, total)
        left, right = _halves(total, ROWS, COLUMNS)
        out.store([row, column], (left * left).to(out.dtype))
        out.store([row, column + COLUMNS // 2], (right * right).to(out.dtype))
        if SLOPE != 0.0:
            root.store([row, column], left.to(root.dtype))
            root.store([row, column + COLUMNS // 2], right.to(root.dtype))


@triton.jit
def _slope_of_square(kept, SLOPE: tl.constexpr):
    """Half the derivative of leaky_relu(h)², from its root with the sign of h, or with SLOPE 0 from the
    square itself.
    """
    wide = kept.to(tl.float32)
    if SLOPE == 0.0:
        wide = tl.sqrt(wide)
    else:
        wide = tl.where(wide < 0.0, SLOPE * wide, wide)
    return wide


@triton.jit
def _down_backward_kernel(
    dy, weight, kept, out, rows, columns, depth, programs,
    SLOPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out (N, F) = (dy (N, D) · weight (D, F)) · 2·leaky_relu'(h)·leaky_relu(h); `kept` (N, F) is the square
    of leaky_relu(h) with SLOPE 0, else itself. All four are tensor descriptors.
    """
    across = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * across
    for tile in tl.range(tl.program_id(0), tiles, programs, flatten=True):
        row, column = (tile // across) * ROWS, (tile % across) * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(tl.cdiv(depth, DEPTH)):
            total = tl.dot(dy.load([row, step * DEPTH]), weight.load([step * DEPTH, column]), total)
        left, right = _halves(total * 2.0, ROWS, COLUMNS)
        out.store([row, column], (left * _slope_of_square(kept.load([row, column]), SLOPE)).to(out.dtype))
        column += COLUMNS // 2
        out.store([row, column], (right * _slope_of_square(kept.load([row, column]), SLOPE)).to(out.dtype))


@triton.jit
def _mix_and_norm_backward_kernel(
    dmixed, dnormed, mixed, x, x0, mix, dx, dx0, dmix, rows, scale, eps,
    DIMS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dim = tl.arange(0, WIDTH)[None, :]
    keep = tl.load(mix + dim, mask=dim < DIMS, other=0.0)
    restart = tl.load(mix + DIMS + dim, mask=dim < DIMS, other=0.0)
    dkeep = tl.zeros((BLOCK, WIDTH), tl.float32)
    drestart = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(tl.program_id(0) * BLOCK, rows, tl.num_programs(0) * BLOCK):
        row = first + tl.arange(0, BLOCK).to(tl.int64)[:, None]
        inside = (row < rows) & (dim < DIMS)
        place = row * DIMS + dim
        own = tl.load(mixed + place, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(dnormed + place, mask=inside, other=0.0).to(tl.float32) * scale
        direct = tl.load(dmixed + place, mask=inside, other=0.0).to(tl.float32)
        stream = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        start = tl.load(x0 + place, mask=inside, other=0.0).to(tl.float32)
        root = tl.rsqrt(tl.sum(own * own, axis=1, keep_dims=True) / DIMS + eps)
        normed = own * root
        total = direct + root * (grad - normed * (tl.sum(grad * normed, axis=1, keep_dims=True) / DIMS))
        tl.store(dx + place, (total * keep).to(dx.dtype.element_ty), mask=inside)
        tl.store(dx0 + place, (total * restart).to(dx0.dtype.element_ty), mask=inside)
        dkeep += total * stream
        drestart += total * start
    sums = dmix + tl.program_id(0) * (2 * DIMS) + tl.arange(0, WIDTH)
    tl.store(sums, tl.sum(dkeep, axis=0), mask=tl.arange(0, WIDTH) < DIMS)
    tl.store(sums + DIMS, tl.sum(drestart, axis=0), mask=tl.arange(0, WIDTH) < DIMS)


@torch.library.custom_op("fairway::prepare_heads", mutates_args=())
def _prepare_heads(
    qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = qkv.shape
    heads = gain.numel()
    dims = width // (heads + 2 * kv_heads)
    q = qkv.new_empty(batch, tokens, heads, dims)
    k, v = (qkv.new_empty(batch, tokens, kv_heads, dims) for _ in range(2))
    rows = batch * tokens
    _prepare_heads_kernel[(triton.cdiv(rows, ROWS_A_PROGRAM), heads + 2 * kv_heads)](
        qkv.contiguous(), cos, sin, gain, q, k, v, rows, tokens, RMS_EPS,
        heads, kv_heads, dims, cos.size(1), ROWS_A_PROGRAM
    )  # fmt: skip
    return q, k, v


@_prepare_heads.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = qkv.shape
    heads = gain.numel()
    dims = width // (heads + 2 * kv_heads)
    shapes = ((batch, tokens, count, dims) for count in (heads, kv_heads, kv_heads))
    return tuple(qkv.new_empty(shape) for shape in shapes)  # type: ignore[return-value]


@torch.library.custom_op("fairway::prepare_heads_backward", mutates_args=())
def _prepare_heads_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, dims = dq.shape
    rows, blocks = batch * tokens, triton.cdiv(batch * tokens, ROWS_A_PROGRAM)
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    dgain = gain.new_empty(blocks, heads)
    _prepare_heads_backward_kernel[(blocks, heads + 2 * dk.size(2))](
        dq.contiguous(), dk.contiguous(), dv.contiguous(), qkv.contiguous(), cos, sin, gain,
        dqkv, dgain, rows, tokens, RMS_EPS,
        heads, dk.size(2), dims, cos.size(1), ROWS_A_PROGRAM,
    )  # fmt: skip
    return dqkv, dgain.sum(0)


@_prepare_heads_backward.register_fake
def _(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), torch.empty_like(gain)


def _keep_for_heads(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])


def _heads_gradients(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    dqkv, dgain = _prepare_heads_backward(dq, dk, dv, *ctx.saved_tensors)
    return dqkv, None, None, dgain, None


_prepare_heads.register_autograd(_heads_gradients, setup_context=_keep_for_heads)


def prepare_heads(
    qkv: Tensor, rotation: tuple[Tensor, Tensor], gain: Tensor, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, T, (H+2K)·E) bfloat16, rotation cos and sin (T, rope_dims/2) float32, gain (H,) float32 ->
    q (B, T, H, E), k, v (B, T, K, E).

    q and k are RMS-normalised per head and partly rotated, q is multiplied by its head's gain, v is as it
    was.
    """
    return _prepare_heads(qkv, *rotation, gain, kv_heads)


@torch.library.custom_op("fairway::up_relu_squared", mutates_args=())
def _up_relu_squared(x: Tensor, weight: Tensor) -> Tensor:
    out = x.new_empty(x.size(0), weight.size(0))
    _launch(_up_relu_squared_kernel, UP_TILE, (out, out), x.size(1), [(x, "rd"), (weight, "cd")], 0.0)
    return out


@_up_relu_squared.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


@torch.library.custom_op("fairway::up_leaky_relu_squared", mutates_args=())
def _up_leaky_relu_squared(x: Tensor, weight: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    square, root = (x.new_empty(x.size(0), weight.size(0)) for _ in range(2))
    _launch(_up_relu_squared_kernel, UP_TILE, (square, root), x.size(1), [(x, "rd"), (weight, "cd")], slope)
    return square, root


@_up_leaky_relu_squared.register_fake
def _(x: Tensor, weight: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.size(0), weight.size(0)), x.new_empty(x.size(0), weight.size(0))


@torch.library.custom_op("fairway::down_backward", mutates_args=())
def _down_backward(dy: Tensor, weight: Tensor, kept: Tensor, slope: float) -> Tensor:
    out = torch.empty_like(kept)
    inputs = [(dy, "rd"), (weight, "dc"), (kept, "rh")]
    _launch(_down_backward_kernel, DOWN_BACKWARD_TILE, (out,), dy.size(1), inputs, slope)
    return out


@_down_backward.register_fake
def _(dy: Tensor, weight: Tensor, kept: Tensor, slope: float) -> Tensor:
    return torch.empty_like(kept)


def _launch(
    kernel: Any,
    tile: tuple[int, ...],
    outputs: tuple[Tensor, ...],
    depth: int,
    inputs: list[tuple[Tensor, str]],
    slope: float,
) -> None:
    """Run a persistent product. `inputs`: each matrix and its tiles' sides; all `outputs` have one shape."""
    rows, columns, deep, warps, stages, resident = tile
    side = {"r": rows, "c": columns, "h": columns // 2, "d": deep}
    descriptors = [
        TensorDescriptor.from_tensor(matrix.contiguous(), [side[name] for name in sides])
        for matrix, sides in [*inputs, *((out, "rh") for out in outputs)]
    ]
    out = outputs[0]
    tiles = triton.cdiv(out.size(0), rows) * triton.cdiv(out.size(1), columns)
    programs = min(tiles, resident * _multiprocessors(out.device))
    kernel[(programs,)](
        *descriptors, out.size(0), out.size(1), depth, programs, slope, rows, columns, deep,
        num_warps=warps, num_stages=stages
    )  # fmt: skip


class _ReluSquaredMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
        if slope == 0:
            square = _up_relu_squared(x, up)
            ctx.save_for_backward(x, up, down, square)
        else:
            square, root = _up_leaky_relu_squared(x, up, slope)
            ctx.save_for_backward(x, up, down, square, root)
        ctx.slope = slope
        return square @ down.mT

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, up, down, square, *root = ctx.saved_tensors
        dh = _down_backward(dy, down, root[0] if root else square, ctx.slope)
        return dh @ up, dh.mT @ x, dy.mT @ square, None


def relu_squared_mlp(x: Tensor, up: Tensor, down: Tensor, slope: float = 0.0) -> Tensor:
    """leaky_relu(x · upᵀ)² · downᵀ; x (B, T, D), up (F, D), down (D, F), all bfloat16 -> (B, T, D).

    With `slope` 0 that is relu². It keeps the square; another slope keeps leaky_relu(x · upᵀ) too.
    """
    return _ReluSquaredMlp.apply(x.flatten(0, -2), up, down, slope).view(*x.shape[:-1], down.size(0))


@torch.library.custom_op("fairway::mix_and_norm_backward", mutates_args=())
def _mix_and_norm_backward(
    dmixed: Tensor, dnormed: Tensor, mixed: Tensor, x: Tensor, x0: Tensor, mix: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = x.size(-1)
    rows = x.numel() // dims
    dx, dx0 = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    programs = min(triton.cdiv(rows, MIX_ROWS), MIX_PROGRAMS * _multiprocessors(x.device))
    dmix = mix.new_empty(programs, *mix.shape)
    big = [tensor.contiguous() for tensor in (dmixed, dnormed, mixed, x, x0)]
    _mix_and_norm_backward_kernel[(programs,)](
        *big, mix, dx, dx0, dmix, rows, scale, RMS_EPS, dims, triton.next_power_of_2(dims), MIX_ROWS,
        num_warps=MIX_WARPS
    )  # fmt: skip
    return dx, dx0, dmix.sum(0)


@_mix_and_norm_backward.register_fake
def _(
    dmixed: Tensor, dnormed: Tensor, mixed: Tensor, x: Tensor, x0: Tensor, mix: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dx0 = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    return dx, dx0, torch.empty_like(mix)


class _MixAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, x0: Tensor, resid_mix: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        mixed, normed = mix_and_norm(x, x0, resid_mix, scale)
        ctx.save_for_backward(mixed, x, x0, resid_mix)
        ctx.scale = scale
        return mixed, normed

    @staticmethod
    def backward(ctx: Any, dmixed: Tensor, dnormed: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *_mix_and_norm_backward(dmixed, dnormed, *ctx.saved_tensors, ctx.scale), None


def mix_and_norm_with_gradient(
    x: Tensor, x0: Tensor, resid_mix: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`mix_and_norm`, left to the compiler, with a gradient in one pass: it sums over all tokens what the
    mix's own gradient needs while it reads them for the rest, where the compiler's kernel spills its
    registers. x and x0 (B, T, D), resid_mix (2, D).
    """
    # The first layer's x is x0, and torch.compile takes no tensor twice here: a view is another tensor.
    return _MixAndNorm.apply(x, x0.view(x0.shape), resid_mix, scale)
