"""The transformer: GQA with partial RoPE, XSA, SmearGate, shared value embedding, U-Net skips, softcapped
head; by settings also loops over layers, gated skips, parallel residuals, gated heads and an untied head.

Shape legend: B batch, T tokens, D model dim, H query heads, K key/value heads, G = H/K, E head dim, V
vocabulary. Sources: openai/parameter-golf pull request 543 and those it builds on; RoPE arXiv:2104.09864, GQA
arXiv:2305.13245, primer's relu² arXiv:2109.08668, Gemma 2's logit softcap arXiv:2408.00118. What is off in
543's model names the pull request that brought it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.model_settings import ModelSettings
from schemas.qat_settings import QatSettings
from schemas.tensor_formats import format_for
from stages.core.attention import (
    attend_causally,
    attend_nearby,
    exclude_own_value,
    rotary_angles,
    rotate_partly,
)
from stages.core.cpu_operations import LeakyReluSquared, ReluSquared, RmsNorm
from stages.core.quantizers.fake_quantizers import FakeQuantizer, fake_quantizer
from stages.core.shards import BOS_ID


def rms_norm(x: Tensor, scale: float = 1.0) -> Tensor:
    """Root-mean-square norm over the last dim, without learned weights, times `scale`."""
    if _trains_on_cpu(x):
        return RmsNorm.apply(x, scale)
    normed = F.rms_norm(x, (x.size(-1),))
    return normed if scale == 1.0 else normed * scale


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)² of each element (arXiv:2109.08668)."""
    return ReluSquared.apply(x) if _trains_on_cpu(x) else F.relu(x).square()


def leaky_relu_squared(x: Tensor, slope: float) -> Tensor:
    """leaky_relu(x)² of each element, `slope` 0 to 1 below zero (pull request 493); with slope 0
    `relu_squared`.
    """
    if slope == 0:
        return relu_squared(x)
    if _trains_on_cpu(x):
        return LeakyReluSquared.apply(x, slope)
    return F.leaky_relu(x, slope).square()


def _trains_on_cpu(x: Tensor) -> bool:
    """Whether the operations with gradients of their own pay; a compiler makes its own."""
    eager = (
        x.device.type == "cpu"
        and x.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )
    return eager and x.dtype != torch.float64


def mix_and_norm(x: Tensor, x0: Tensor, resid_mix: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A block's input: x and x0 (..., D) mixed by resid_mix (2, D), and that normalised and scaled."""
    keep, restart = resid_mix.to(x.dtype)
    mixed = keep * x + restart * x0
    return mixed, rms_norm(mixed, scale)


class Matrix(nn.Module):
    """A bias-free linear map or an embedding table: float32 master weight (rows, columns), cast to the
    input's dtype at use.

    Late QAT adds `qat_shift` = Q(w) − w, a constant for autograd, so the forward pass sees the quantized
    weight and the gradient goes straight through (arXiv:1308.3432). A tensor's value switches it, so nothing
    is compiled again.
    """

    qat_shift: Tensor | None

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.register_buffer("qat_shift", None, persistent=False)
        self.qat_bits = 0

    def current(self, dtype: torch.dtype, row_scale: Tensor | None = None) -> Tensor:
        weight = self.weight if self.qat_shift is None else self.weight + self.qat_shift
        return (weight if row_scale is None else weight * row_scale[:, None]).to(dtype)

    def forward(self, x: Tensor, row_scale: Tensor | None = None) -> Tensor:
        """x (..., columns) -> (..., rows).

        `row_scale` (rows,) multiplies the output; it is folded into the weight, because a product over rows ×
        columns, and the sum for its gradient, cost nothing beside the same over every token.
        """
        return F.linear(x, self.current(x.dtype, row_scale))

    def look_up(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows `ids` (B, T) as (B, T, columns)."""
        return F.embedding(ids, self.current(dtype))


class Attention(nn.Module):
    """Causal self-attention of one layer.

    `exclusive` takes the component along each token's own value out (XSA). With `head_gate` (H, g) head h is
    then scaled by sigmoid(s · head_gate[h] · x[:g]) of each token's input x, one half at the start (pull
    requests 1667 and 1855).

    `fused_heads`, where set, does the work of `heads` after one product for q, k and v
    (stages/core/fused_kernels.py).
    """

    fused_heads: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None

    def __init__(self, settings: ModelSettings, exclusive: bool) -> None:
        super().__init__()
        kv_dim = settings.num_kv_heads * settings.head_dim
        self.num_heads, self.num_kv_heads, self.head_dim = (
            settings.num_heads,
            settings.num_kv_heads,
            settings.head_dim,
        )
        self.exclusive = exclusive
        self.q = Matrix(settings.model_dim, settings.model_dim)
        self.k = Matrix(kv_dim, settings.model_dim)
        self.v = Matrix(kv_dim, settings.model_dim)
        self.out = Matrix(settings.model_dim, settings.model_dim)
        self.q_gain = nn.Parameter(torch.full((settings.num_heads,), settings.q_gain_init))
        self.head_gate = (
            nn.Parameter(torch.zeros(settings.num_heads, settings.head_gate_dims))
            if settings.head_gate
            else None
        )
        self.head_gate_scale = settings.head_gate_scale

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        value_shift: Tensor | None,
        out_scale: Tensor,
        num_last: int | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """x (B, T, D), rotation cos and sin (T, rope_dims/2), value_shift (B, T, K·E) or None, out_scale
        (D,) -> (B, T, D).

        With `num_last` only the last positions ask: (B, num_last, D). With `reach` each asks about itself and
        the `reach` − 1 positions before it.
        """
        batch, tokens, _ = x.shape
        q, k, v = self.heads(x, rotation)
        if value_shift is not None:
            v = v + value_shift.view(v.shape)
        asked = num_last or tokens
        q = q[:, -asked:]
        y = attend_causally(q, k, v) if reach is None else attend_nearby(q, k, v, reach)
        if self.exclusive:
            y = exclude_own_value(y, v[:, -asked:])
        if self.head_gate is not None:
            seen = x[:, -asked:, : self.head_gate.size(1)]
            opened = torch.sigmoid(self.head_gate_scale * F.linear(seen, self.head_gate.to(x.dtype)))
            y = y * opened.unsqueeze(-1)
        return self.out(y.reshape(batch, asked, -1), out_scale)

    def heads(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> q (B, T, H, E) with its gain, k and v (B, T, K, E); q and k normalised and
        rotated.
        """
        if self.fused_heads is not None:
            weights = torch.cat([matrix.current(x.dtype) for matrix in (self.q, self.k, self.v)])
            return self.fused_heads(F.linear(x, weights), rotation, self.q_gain, self.num_kv_heads)
        q, k, v = (matrix(x).unflatten(-1, (-1, self.head_dim)) for matrix in (self.q, self.k, self.v))
        q = rotate_partly(rms_norm(q), *rotation) * self.q_gain.to(x.dtype)[:, None]
        return q, rotate_partly(rms_norm(k), *rotation), v


class Mlp(nn.Module):
    """out_scale · f(x W1) W2, f = relu², or leaky relu² with a slope.

    `fused`, where set, does it with the two matrices (stages/core/fused_kernels.py).
    """

    fused: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.up = Matrix(settings.mlp_hidden, settings.model_dim)
        self.down = Matrix(settings.model_dim, settings.mlp_hidden)
        self.slope = settings.leaky_slope

    def forward(self, x: Tensor, out_scale: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x, self.up.current(x.dtype), self.down.current(x.dtype, out_scale), self.slope)
        return self.down(leaky_relu_squared(self.up(x), self.slope), out_scale)


class Block(nn.Module):
    """One layer; its input is a learned mix of the stream x and the first layer's input x0.

    `parallel`: the MLP reads what attention reads, and not attention's result (GPT-J's form; pull request
    1412).

    `mix_and_norm` may be one with a gradient of its own (stages/core/fused_kernels.py).
    """

    def __init__(self, settings: ModelSettings, layer: int) -> None:
        super().__init__()
        self.norm_scale = (layer + 1) ** -0.5 if settings.ln_scale else 1.0
        self.mix_and_norm = mix_and_norm
        self.parallel = settings.parallel_residuals != "off" and layer >= settings.parallel_first_layer
        self.attn = Attention(settings, exclusive=layer >= settings.num_layers - settings.xsa_layers)
        self.mlp = Mlp(settings)
        self.attn_scale = nn.Parameter(torch.ones(settings.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(settings.model_dim))
        self.resid_mix = nn.Parameter(
            torch.stack((torch.ones(settings.model_dim), torch.zeros(settings.model_dim)))
        )

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        rotation: tuple[Tensor, Tensor],
        value_shift: Tensor | None,
        num_last: int | None = None,
        reach: int | None = None,
    ) -> Tensor:
        x, normed = self.mix_and_norm(x, x0, self.resid_mix, self.norm_scale)
        attended = self.attn(normed, rotation, value_shift, self.attn_scale, num_last, reach)
        asked = attended.size(1)
        x = x[:, -asked:] + attended
        read = normed[:, -asked:] if self.parallel else rms_norm(x, self.norm_scale)
        return x + self.mlp(read, self.mlp_scale)


class TwoLaneBlock(Block):
    """A layer between two streams: attention reads the first, mixed with x0, and the MLP the second; each
    stream becomes a learned sum of itself and both results (pull requests 1204 and 1529).

    `lanes` (3, 2): factors of the stream, of attention and of the MLP, for each stream; 1.1, 1 and 1 at the
    start.
    """

    def __init__(self, settings: ModelSettings, layer: int) -> None:
        super().__init__(settings, layer)
        self.lanes = nn.Parameter(torch.tensor([[1.1, 1.1], [1.0, 1.0], [1.0, 1.0]]))

    def forward(  # type: ignore[override]
        self,
        streams: tuple[Tensor, Tensor],
        x0: Tensor,
        rotation: tuple[Tensor, Tensor],
        value_shift: Tensor | None,
        num_last: int | None = None,
        reach: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        first, second = streams
        _, normed = self.mix_and_norm(first, x0, self.resid_mix, self.norm_scale)
        attended = self.attn(normed, rotation, value_shift, self.attn_scale, num_last, reach)
        asked = attended.size(1)
        first, second = first[:, -asked:], second[:, -asked:]
        fed = self.mlp(rms_norm(second, self.norm_scale), self.mlp_scale)
        own, of_attention, of_mlp = self.lanes.to(first.dtype)
        return (
            own[0] * first + of_attention[0] * attended + of_mlp[0] * fed,
            own[1] * second + of_attention[1] * attended + of_mlp[1] * fed,
        )


def make_block(settings: ModelSettings, layer: int) -> Block:
    """The layer in the form that the settings give it."""
    in_two = settings.parallel_residuals == "two_lanes" and layer >= settings.parallel_first_layer
    return (TwoLaneBlock if in_two else Block)(settings, layer)


class SmearGate(nn.Module):
    """x_t ← (1−g)·x_t + g·x_{t−1}, g = sigmoid of a learned weight per dim; nothing comes before the
    first token.
    """

    reads_raw = False

    def __init__(self, dim: int, stops_at_bos: bool) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))
        self.stops_at_bos = stops_at_bos

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate).to(x.dtype)
        previous = previous_token(x, ids, self.stops_at_bos)
        return (1 - gate) * x + gate * previous


class InputSmearGate(nn.Module):
    """x_t ← x_t + λ·sigmoid(w · x_t[:g])·x_{t−1} on the embedding before its norm; λ and w are 0 at the
    start (pull request 1667).

    `gate` (g,), `strength` (1,).
    """

    reads_raw = True

    def __init__(self, dims: int, stops_at_bos: bool) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dims))
        self.strength = nn.Parameter(torch.zeros(1))
        self.stops_at_bos = stops_at_bos

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        gate = torch.sigmoid((x[..., : self.gate.numel()] * self.gate.to(x.dtype)).sum(-1, keepdim=True))
        return x + self.strength.to(x.dtype) * gate * previous_token(x, ids, self.stops_at_bos)


def previous_token(x: Tensor, ids: Tensor, stops_at_bos: bool) -> Tensor:
    """x (B, T, D) one position later, 0 before the first token and, if asked, where `ids` (B, T) is BOS."""
    previous = F.pad(x[:, :-1], (0, 0, 1, 0))
    return previous * (ids != BOS_ID).unsqueeze(-1) if stops_at_bos else previous


class ValueEmbedding(nn.Module):
    """One table and projection shared by some layers: v ← v + scale·proj(table[ids])."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.table = Matrix(settings.vocab_size, settings.value_embedding_dim)
        self.proj = Matrix(settings.num_kv_heads * settings.head_dim, settings.value_embedding_dim)
        every_layer = settings.value_embedding_scale_every_layer
        layers = range(settings.num_layers) if every_layer else settings.value_embedding_layers
        self.scales = nn.ParameterDict({str(layer): nn.Parameter(torch.ones(1)) for layer in layers})

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self.proj(self.table.look_up(ids, dtype))


class GPT(nn.Module):
    """The whole model.

    Construct, then `init_weights` or `load_state_dict`. `qat_grid` names the quantizer that late QAT goes by.
    With `settings.loop_passes` its layers run in the looped order wherever nobody calls `use_loops(False)`.
    """

    qat_grid: str | None = None
    fake_quantize: FakeQuantizer

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.tok_emb = Matrix(settings.vocab_size, settings.model_dim)
        self.smear = self._smear_gate(settings) if settings.smear_gate else None
        self.value_embedding = ValueEmbedding(settings) if settings.value_embedding_dim else None
        self.blocks = nn.ModuleList(make_block(settings, layer) for layer in range(settings.num_layers))
        pairs = len(settings.layer_order()) // 2
        self.skip_weights = (
            nn.Parameter(torch.ones(pairs, settings.model_dim)) if settings.unet_skips else None
        )
        self.skip_gates = (
            nn.Parameter(torch.zeros(pairs, settings.model_dim)) if settings.skip_gates else None
        )
        self.head = None if settings.tied_head else Matrix(settings.vocab_size, settings.model_dim)
        self.looped = settings.loop_passes > 1

    @staticmethod
    def _smear_gate(settings: ModelSettings) -> SmearGate | InputSmearGate:
        if settings.smear_form == "by_input":
            return InputSmearGate(settings.smear_dims, settings.smear_stops_at_bos)
        return SmearGate(settings.model_dim, settings.smear_stops_at_bos)

    def use_loops(self, on: bool) -> None:
        """Run the looped layers `loop_passes` times, or each layer once. A compiled model keeps a graph for
        each, so only the first switch compiles; a model without loops has one graph.
        """
        self.looped = on and self.settings.loop_passes > 1

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Orthogonal matrices, zero output projections, small normal embeddings; the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        for name, module in self.named_modules():
            if not isinstance(module, Matrix):
                continue
            fresh = torch.empty(module.weight.shape)
            if name == "tok_emb":
                fresh.normal_(0.0, self.settings.embedding_init_std, generator=generator)
            elif name == "value_embedding.table":
                fresh.normal_(0.0, 0.01, generator=generator)
            elif name == "head" or name.endswith((".out", ".down", ".proj")):
                fresh.zero_()
            else:
                nn.init.orthogonal_(fresh, generator=generator)
            module.weight.copy_(fresh)

    def hidden(
        self,
        ids: Tensor,
        dtype: torch.dtype = torch.float32,
        num_last: int | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """Token ids (B, T) int64 -> normalised output of the last layer (B, T, D) in `dtype`.

        With `num_last` only that of the last positions, (B, num_last, D): the last layer attends and feeds
        forward for no other. With `reach` each layer attends to a position and the `reach` − 1 before it.
        """
        settings = self.settings
        x = self.tok_emb.look_up(ids, dtype)
        if self.smear is not None and self.smear.reads_raw:
            x = self.smear(x, ids)
        x = rms_norm(x)
        if self.smear is not None and not self.smear.reads_raw:
            x = self.smear(x, ids)
        value_shift = self.value_embedding(ids, dtype) if self.value_embedding is not None else None
        rotation = rotary_angles(ids.size(1), settings.rope_dims, settings.rope_base, ids.device)
        x0 = x
        second: Tensor | None = None  # the MLP's stream, where layers have two
        skips: list[Tensor] = []
        order = settings.layer_order(self.looped)
        for place, layer in enumerate(order):
            block = self.blocks[layer]
            if isinstance(block, TwoLaneBlock) and second is None:
                second = x
            if self.skip_weights is not None and place >= len(order) // 2 and skips:
                x = self._join_skip(x, skips.pop(), place - len(order) // 2)
            shift = None
            if value_shift is not None and layer in settings.value_embedding_layers:
                shift = self.value_embedding.scales[str(layer)].to(dtype) * value_shift  # type: ignore[union-attr]
            asked = num_last if place == len(order) - 1 else None
            if second is not None:
                x, second = block((x, second), x0, rotation, shift, asked, reach)
            else:
                x = block(x, x0, rotation, shift, asked, reach)
            if self.skip_weights is not None and place < len(order) // 2:
                skips.append(x)
        return rms_norm(x if second is None else (x + second) / 2)

    def _join_skip(self, x: Tensor, skip: Tensor, pair: int) -> Tensor:
        """x + w·skip; with gates w·skip + sigmoid(g)·(x − w·skip), halfway at the start (pull request 1089).
        x and skip (B, T, D).
        """
        assert self.skip_weights is not None
        weighted = self.skip_weights[pair].to(x.dtype) * skip
        if self.skip_gates is None:
            return x + weighted
        return torch.lerp(weighted, x, torch.sigmoid(self.skip_gates[pair]).to(x.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden (..., D) -> softcapped logits (..., V), float32."""
        cap = self.settings.logit_softcap
        head = self.tok_emb if self.head is None else self.head
        return cap * torch.tanh(head(hidden).float() / cap)

    def forward(self, ids: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Mean cross-entropy in nats of `targets` (B, T) after `ids` (B, T)."""
        logits = self.logits(self.hidden(ids, dtype))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def idle_parameters(self) -> list[str]:
        """Names of parameters that no forward pass uses, so that training cannot change them."""
        if self.value_embedding is None:
            return []
        used = {str(layer) for layer in self.settings.value_embedding_layers}
        return [
            f"value_embedding.scales.{layer}" for layer in self.value_embedding.scales if layer not in used
        ]

    def prepare_qat(self, settings: QatSettings) -> None:
        """Give every matrix that the rules store as integers its shift, 0 until `update_qat` is called."""
        self.qat_grid, self.fake_quantize = fake_quantizer(settings)
        for name, module in self.named_modules():
            if isinstance(module, Matrix):
                stored_as = format_for(f"{name}.weight", settings.rules)
                if stored_as.startswith("int"):
                    module.qat_bits = int(stored_as.removeprefix("int"))
                    module.qat_shift = torch.zeros_like(module.weight)

    @torch.no_grad()
    def update_qat(self) -> None:
        """Set every shift to Q(w) − w of the present weights; called once an optimizer step while QAT is
        on.
        """
        alike: dict[tuple[torch.Size, int], list[tuple[Tensor, Tensor]]] = {}
        for module in self.modules():
            if isinstance(module, Matrix) and module.qat_shift is not None:
                alike.setdefault((module.weight.shape, module.qat_bits), []).append(
                    (module.weight, module.qat_shift)
                )
        for (
            _,
            bits,
        ), pairs in alike.items():  # together, because a GPU takes longer to start small work than to do it
            weights = torch.stack([weight for weight, _ in pairs])
            torch._foreach_copy_(
                [shift for _, shift in pairs], list((self.fake_quantize(weights, bits) - weights).unbind())
            )
