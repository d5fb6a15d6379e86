"""What benchmarks.gpu_step checks and measures beside the step: kernels, agreement with the CPU, scoring,
copies of the weights.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.compute_settings import ComputeSettings
from schemas.model_settings import ModelSettings
from schemas.scoring_settings import ScoringSettings
from schemas.train_settings import DataSettings, ScheduleSettings, TrainSettings
from stages.core import fused_kernels
from stages.core.attention import attend_causally, attend_nearby, rotary_angles, rotate_partly
from stages.core.bits_per_byte import TokenBytes
from stages.core.loader import TokenStream
from stages.core.model import GPT, Matrix, mix_and_norm, rms_norm
from stages.core.scoring import score
from stages.core.trainer import Hooks, StepMetrics, Trainer

BATCH, TOKENS, DIM, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 48, 2048, 512, 1408, 8, 4, 64


def relative(value: Tensor, reference: Tensor) -> float:
    """‖value − reference‖ / ‖reference‖, in float64; NaN stays NaN."""
    difference, reference = value.double() - reference.double(), reference.double()
    return float(difference.norm() / reference.norm().clamp_min(1e-300))


def milliseconds(action: Callable[[], object], repeats: int = 7, together: int = 10) -> float:
    """Median time of one launch, by events around `together` of them, so that the host's share is hidden."""
    times = []
    for _ in range(repeats + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(together):
            action()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / together)
    return sorted(times[1:])[repeats // 2]


def plain_heads(qkv: Tensor, rotation: tuple[Tensor, Tensor], gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts = qkv.split((HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM), -1)
    q, k, v = (part.unflatten(-1, (-1, HEAD_DIM)) for part in parts)
    return (
        rotate_partly(rms_norm(q), *rotation) * gain.to(q.dtype)[:, None],
        rotate_partly(rms_norm(k), *rotation),
        v,
    )


def plain_mlp(x: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
    return F.linear(F.leaky_relu(F.linear(x, up), slope).square(), down)


def check_kernels() -> dict[str, float]:
    """Relative errors of kernels and of plain bfloat16, values and gradients, against float32; and times
    at the record's shapes.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator("cuda").manual_seed(int(time.time()))

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device="cuda") * scale).bfloat16()

    rotation = rotary_angles(TOKENS, 16, 10_000.0, torch.device("cuda"))
    result: dict[str, float] = {}
    qkv, gain = normal(4, TOKENS, (HEADS + 2 * KV_HEADS) * HEAD_DIM), 1 + torch.rand(HEADS, device="cuda")
    head_grads = [normal(4, TOKENS, count, HEAD_DIM) for count in (HEADS, KV_HEADS, KV_HEADS)]

    def heads(function: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype) -> list[Tensor]:
        inputs = [qkv.to(dtype, copy=True).requires_grad_(), gain.clone().requires_grad_()]
        outputs = function(inputs[0], rotation, inputs[1])
        return [*outputs, *torch.autograd.grad(outputs, inputs, [grad.to(dtype) for grad in head_grads])]

    def fused_heads(*inputs: Tensor) -> tuple[Tensor, ...]:
        return fused_kernels.prepare_heads(*inputs, KV_HEADS)  # type: ignore[arg-type, call-arg]

    exact = heads(plain_heads, torch.float32)
    for which, values in (
        ("fused", heads(fused_heads, torch.bfloat16)),
        ("plain", heads(plain_heads, torch.bfloat16)),
    ):
        for name, value, reference in zip(("q", "k", "v", "dqkv", "dgain"), values, exact, strict=True):
            result[f"heads {which} {name}"] = relative(value, reference)

    x, up, down = normal(4, TOKENS, DIM), normal(HIDDEN, DIM, scale=0.05), normal(DIM, HIDDEN, scale=0.05)
    dy = normal(4, TOKENS, DIM)

    def mlp(function: Callable[..., Tensor], dtype: torch.dtype, slope: float) -> list[Tensor]:
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, up, down)]
        y = function(*inputs, slope)
        return [y, *torch.autograd.grad(y, inputs, dy.to(dtype))]

    for slope, title in ((0.0, "mlp"), (0.5, "leaky mlp")):
        exact = mlp(plain_mlp, torch.float32, slope)
        for which, values in (
            ("fused", mlp(fused_kernels.relu_squared_mlp, torch.bfloat16, slope)),
            ("plain", mlp(plain_mlp, torch.bfloat16, slope)),
        ):
            for name, value, reference in zip(("y", "dx", "dup", "ddown"), values, exact, strict=True):
                result[f"{title} {which} {name}"] = relative(value, reference)

    x0, resid_mix = normal(4, TOKENS, DIM), 0.5 + torch.rand(2, DIM, device="cuda")

    def mix(function: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
        inputs = [
            x.to(dtype, copy=True).requires_grad_(),
            x0.to(dtype, copy=True).requires_grad_(),
            resid_mix.clone().requires_grad_(),
        ]
        outputs = function(*inputs, 0.5)
        return [*outputs, *torch.autograd.grad(outputs, inputs, [dy.to(dtype), x0.to(dtype)])]

    exact = mix(mix_and_norm, torch.float32)
    for which, values in (
        ("fused", mix(fused_kernels.mix_and_norm_with_gradient, torch.bfloat16)),
        ("plain", mix(mix_and_norm, torch.bfloat16)),
    ):
        for name, value, reference in zip(
            ("mixed", "normed", "dx", "dx0", "dmix"), values, exact, strict=True
        ):
            result[f"mix {which} {name}"] = relative(value, reference)
    return result


def time_kernels(tiles: list[tuple[int, ...]]) -> dict[str, float]:
    """Milliseconds of one layer's kernels at 98,304 tokens, beside the products alone, for several tiles."""
    x, dy = (torch.randn(BATCH * TOKENS, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    up, down = (
        torch.randn(HIDDEN, DIM, device="cuda").bfloat16() * 0.05,
        torch.randn(DIM, HIDDEN, device="cuda").bfloat16() * 0.05,
    )
    square, root = F.relu(x @ up.T).square(), F.leaky_relu(x @ up.T, 0.5)
    result = {
        "up product alone": milliseconds(lambda: x @ up.T),
        "down backward product alone": milliseconds(lambda: dy @ down),
    }
    kept = fused_kernels.UP_TILE, fused_kernels.DOWN_BACKWARD_TILE
    for tile in tiles:
        fused_kernels.UP_TILE = fused_kernels.DOWN_BACKWARD_TILE = tile
        for name, action in (
            ("up", lambda: fused_kernels._up_relu_squared(x, up)),
            ("down backward", lambda: fused_kernels._down_backward(dy, down, square, 0.0)),
            ("leaky up", lambda: fused_kernels._up_leaky_relu_squared(x, up, 0.5)),
            ("leaky down backward", lambda: fused_kernels._down_backward(dy, down, root, 0.5)),
        ):
            try:
                result[f"{name} {tile}"] = milliseconds(action)
            except Exception as error:  # noqa: BLE001 - a tile that does not fit the GPU is a finding
                result[f"{name} {tile} failed: {str(error)[:60]}"] = float("nan")
    fused_kernels.UP_TILE, fused_kernels.DOWN_BACKWARD_TILE = kept
    rotation = rotary_angles(TOKENS, 16, 10_000.0, torch.device("cuda"))
    qkv, gain = (
        torch.randn(BATCH, TOKENS, 1024, device="cuda", dtype=torch.bfloat16),
        torch.ones(HEADS, device="cuda"),
    )
    q, k, v = fused_kernels.prepare_heads(qkv, rotation, gain, KV_HEADS)
    result["heads"] = milliseconds(lambda: fused_kernels.prepare_heads(qkv, rotation, gain, KV_HEADS))
    result["heads backward"] = milliseconds(
        lambda: fused_kernels._prepare_heads_backward(q, k, v, qkv, *rotation, gain)
    )
    mix = torch.rand(2, DIM, device="cuda")
    kept_mix = fused_kernels.MIX_ROWS, fused_kernels.MIX_PROGRAMS, fused_kernels.MIX_WARPS
    for option in ((4, 8, 4), (4, 4, 4), (2, 8, 4), (8, 4, 8), (4, 8, 8), (1, 16, 2), (2, 16, 2)):
        fused_kernels.MIX_ROWS, fused_kernels.MIX_PROGRAMS, fused_kernels.MIX_WARPS = option
        result[f"mix backward {option}"] = milliseconds(
            lambda: fused_kernels._mix_and_norm_backward(x, dy, x, dy, x, mix, 0.5)
        )
    fused_kernels.MIX_ROWS, fused_kernels.MIX_PROGRAMS, fused_kernels.MIX_WARPS = kept_mix
    return result


def check_agreement(trainer: Trainer, micro_batch: int) -> dict[str, float]:
    """Loss and gradients of the compiled network, of the same kernels without compiling and of plain
    PyTorch in bfloat16, against the CPU in float32. Two sequences, repeated to the trained batch on the
    GPU, which changes neither the mean nor its gradient. Loops are on where the model has them.
    """
    settings = trainer.settings.model
    reference = GPT(settings)
    reference.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in reference.parameters():  # zero projections would hide most of the model
            param.add_(0.02 * torch.randn(param.shape, generator=generator))
    ids = torch.randint(3, settings.vocab_size, (2, TOKENS + 1), generator=generator)
    loss = reference(ids[:, :-1], ids[:, 1:])
    loss.backward()
    exact = {name: param.grad for name, param in reference.named_parameters()}
    plain = GPT(settings)
    for model in (trainer.model, plain):
        model.load_state_dict(reference.state_dict())
    plain.cuda()
    for module in trainer.model.modules():  # QAT's shifts belong to the weights that were there before
        if isinstance(module, Matrix) and module.qat_shift is not None:
            module.qat_shift.zero_()
    on_gpu = ids.cuda()
    repeated = on_gpu.repeat(micro_batch // 2, 1)
    result: dict[str, float] = {}
    for which, network, model, batch in (
        ("compiled", trainer.network, trainer.model, repeated),
        ("not compiled", trainer.model, trainer.model, on_gpu),
        ("plain bfloat16", plain, plain, on_gpu),
    ):
        model.zero_grad(set_to_none=True)
        value = network(batch[:, :-1], batch[:, 1:], torch.bfloat16)
        value.backward()
        errors = {name: relative(param.grad.cpu(), exact[name]) for name, param in model.named_parameters()}  # type: ignore[union-attr, arg-type]
        worst = max(errors, key=lambda name: errors[name])
        result |= {
            f"{which}: loss": abs(float(value) / float(loss.detach()) - 1),
            f"{which}: median gradient": sorted(errors.values())[len(errors) // 2],
            f"{which}: worst gradient ({worst})": errors[worst],
        }
    trainer.model.zero_grad(set_to_none=True)
    return result


def check_smoke(shards: list[Path]) -> dict[str, float]:
    """The preset `smoke`'s model for 40 steps, QAT at the end: losses on the CPU in float32 and on the
    GPU in bfloat16, the same data.
    """
    settings = TrainSettings(
        model=ModelSettings(
            num_layers=3, model_dim=32, num_heads=2, num_kv_heads=1, mlp_hidden=64, rope_dims=8, xsa_layers=1,
            value_embedding_dim=8, value_embedding_layers=(2,),
        ),
        schedule=ScheduleSettings(max_steps=40),
        data=DataSettings(batch_tokens=1_024, sequence_length=64, micro_batch_sequences=8),
    )  # fmt: skip
    losses: dict[str, list[float]] = {}
    for device, precision in (("cpu", "float32"), ("cuda", "bfloat16")):
        rows: list[StepMetrics] = []
        Trainer(
            replace(settings, compute=ComputeSettings(device=device, precision=precision)),
            shards,
            Hooks(step=rows.append),
        ).run()  # type: ignore[arg-type]
        losses[device] = [row.loss for row in rows]
    gaps = [abs(a / b - 1) for a, b in zip(losses["cpu"], losses["cuda"], strict=True)]
    return {
        "first loss": losses["cpu"][0],
        "last loss": losses["cpu"][-1],
        "largest relative gap": max(gaps),
        "last gap": gaps[-1],
    }


def check_attention() -> dict[str, float]:
    """Attention over the nearest 2,048 of 16,384 tokens: error of bfloat16 against float32 on the CPU,
    and milliseconds beside causal attention in windows of 2,048.
    """
    heads = (HEADS, KV_HEADS, KV_HEADS)
    exact = [torch.randn(1, 8 * TOKENS, count, HEAD_DIM) for count in heads]
    q, k, v = (part.cuda().bfloat16() for part in exact)
    windows = [part.view(8, TOKENS, *part.shape[2:]) for part in (q, k, v)]
    with torch.inference_mode():
        return {
            "error": relative(attend_nearby(q, k, v, TOKENS).cpu(), attend_nearby(*exact, TOKENS)),
            "nearest 2,048, ms": milliseconds(lambda: attend_nearby(q, k, v, TOKENS)),
            "windows of 2,048, ms": milliseconds(lambda: attend_causally(*windows)),
        }


def time_scoring(model: GPT, tokens: TokenStream) -> dict[str, float]:
    """Targets a second of each kind of evaluation, as the packaged script does them."""
    vocab = model.settings.vocab_size
    table = TokenBytes(np.ones(vocab, np.int64), np.zeros(vocab, bool), np.zeros(vocab, bool))
    result = {}
    settings = ScoringSettings(sequence_length=2048, stride=0, batch_tokens=131_072, attention_window=2048)
    assert settings.overlapping is not None
    for kind, stride, reach, count in (
        ("non-overlapping", 2048, None, 4_000_000),
        ("one pass", settings.overlapping[1], 2048, 4_000_000),
        ("sliding", 64, None, 60_000),
    ):
        few, many = _First(tokens, 8_192 if kind == "sliding" else 2 * 131_072), _First(tokens, count)
        score(model, few, table, settings, stride, torch.bfloat16, reach=reach)  # type: ignore[arg-type]
        torch.cuda.synchronize()
        began = time.perf_counter()
        sums = score(model, many, table, settings, stride, torch.bfloat16, reach=reach)  # type: ignore[arg-type]
        result[f"{kind}: targets a second"] = sums.num_targets / (time.perf_counter() - began)
    return result


class _First:
    """The first tokens of a stream."""

    def __init__(self, tokens: TokenStream, count: int) -> None:
        self._tokens, self._count = tokens, count

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, count: int) -> np.ndarray:
        return self._tokens.read(start, count)


def time_copies(trainer: Trainer) -> dict[str, float]:
    """Milliseconds that the loop waits for a snapshot's and a checkpoint's tensors; their writing goes on
    beside it.
    """
    result = {}
    for name, action in (("snapshot", trainer.weights), ("checkpoint", trainer.state)):
        action()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(3):
            action()
        result[f"{name}: ms"] = (time.perf_counter() - began) / 3 * 1000
    return result
