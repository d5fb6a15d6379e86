"""The peer of the training and evaluation benchmarks: the reference's model, optimizer and scoring loop
written plainly.

What a script in the field does: eager PyTorch, bf16 over fp32 weights (fp32 where `auto` means it), fused
attention, eight micro-batches a step, a Muon that takes one matrix after the other, an evaluation that
computes the logits of every position of every window. Nothing of Fairway's numerics is used; parameters carry
the same names, so that both sides start from the same weights.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.model_settings import ModelSettings
from schemas.train_settings import OptimizerSettings

NUM_MICRO_BATCHES = 8
BOS_ID = 1


class CastLinear(nn.Linear):
    """fp32 weight, cast to the input's dtype."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(columns, rows, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


class PlainAttention(nn.Module):
    def __init__(self, s: ModelSettings, layer: int) -> None:
        super().__init__()
        self.s, self.exclusive = s, layer >= s.num_layers - s.xsa_layers
        kv_dim = s.num_kv_heads * s.head_dim
        self.q, self.k = CastLinear(s.model_dim, s.model_dim), CastLinear(kv_dim, s.model_dim)
        self.v, self.out = CastLinear(kv_dim, s.model_dim), CastLinear(s.model_dim, s.model_dim)
        self.q_gain = nn.Parameter(torch.full((s.num_heads,), s.q_gain_init))

    def rotate(self, x: Tensor) -> Tensor:
        """x (B, heads, T, E)."""
        half = self.s.rope_dims // 2
        frequencies = self.s.rope_base ** (-torch.arange(0, half, dtype=torch.float32) / half)
        angles = torch.outer(torch.arange(x.size(2), dtype=torch.float32), frequencies)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)

    def forward(self, x: Tensor, value_shift: Tensor | None) -> Tensor:
        batch, tokens, dim = x.shape
        v = self.v(x)
        if value_shift is not None:
            v = v + value_shift
        q = self.q(x).view(batch, tokens, -1, self.s.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, -1, self.s.head_dim).transpose(1, 2)
        v = v.view(batch, tokens, -1, self.s.head_dim).transpose(1, 2)
        q = self.rotate(norm(q)) * self.q_gain.to(q.dtype)[:, None, None]
        y = F.scaled_dot_product_attention(
            q, self.rotate(norm(k)), v, is_causal=True, enable_gqa=self.s.num_heads != self.s.num_kv_heads
        )
        if self.exclusive:
            direction = F.normalize(v, dim=-1).repeat_interleave(
                self.s.num_heads // self.s.num_kv_heads, dim=1
            )
            y = y - (y * direction).sum(-1, keepdim=True) * direction
        return self.out(y.transpose(1, 2).reshape(batch, tokens, dim))


class PlainMlp(nn.Module):
    def __init__(self, s: ModelSettings) -> None:
        super().__init__()
        self.up, self.down = CastLinear(s.mlp_hidden, s.model_dim), CastLinear(s.model_dim, s.mlp_hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class PlainBlock(nn.Module):
    def __init__(self, s: ModelSettings, layer: int) -> None:
        super().__init__()
        self.attn, self.mlp = PlainAttention(s, layer), PlainMlp(s)
        self.attn_scale, self.mlp_scale = (
            nn.Parameter(torch.ones(s.model_dim)),
            nn.Parameter(torch.ones(s.model_dim)),
        )
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(s.model_dim), torch.zeros(s.model_dim))))
        self.scale = (layer + 1) ** -0.5 if s.ln_scale else 1.0

    def forward(self, x: Tensor, x0: Tensor, value_shift: Tensor | None) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        x = x + self.attn_scale.to(x.dtype) * self.attn(norm(x) * self.scale, value_shift)
        return x + self.mlp_scale.to(x.dtype) * self.mlp(norm(x) * self.scale)


class PlainGPT(nn.Module):
    """ids (B, T) and targets (B, T) -> mean cross-entropy in nats. `dtype` is that of matrix products."""

    def __init__(self, s: ModelSettings, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.s, self.dtype = s, dtype
        self.tok_emb = nn.Embedding(s.vocab_size, s.model_dim)
        self.smear = nn.ParameterDict({"gate": nn.Parameter(torch.zeros(s.model_dim))})
        self.value_embedding = nn.ModuleDict(
            {
                "table": nn.Embedding(s.vocab_size, s.value_embedding_dim),
                "proj": CastLinear(s.num_kv_heads * s.head_dim, s.value_embedding_dim),
                "scales": nn.ParameterDict(
                    {str(layer): nn.Parameter(torch.ones(1)) for layer in s.value_embedding_layers}
                ),
            }
        )
        self.blocks = nn.ModuleList(PlainBlock(s, layer) for layer in range(s.num_layers))
        self.skip_weights = nn.Parameter(torch.ones(s.num_layers // 2, s.model_dim))

    def logits(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> softcapped logits of every position (B, T, V), float32."""
        s, dtype = self.s, self.dtype
        x = norm(self.tok_emb(ids).to(dtype))
        gate = torch.sigmoid(self.smear["gate"]).to(dtype)
        before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
        if s.smear_stops_at_bos:
            before = before * (ids != BOS_ID).unsqueeze(-1)
        x = (1 - gate) * x + gate * before
        x0, skips = x, []
        for layer, block in enumerate(self.blocks):
            if layer >= s.num_layers // 2 and skips:
                x = x + self.skip_weights[layer - s.num_layers // 2].to(dtype) * skips.pop()
            shift = None
            if layer in s.value_embedding_layers:
                ve = self.value_embedding
                shift = ve["scales"][str(layer)].to(dtype) * ve["proj"](ve["table"](ids).to(dtype))
            x = block(x, x0, shift)
            if layer < s.num_layers // 2:
                skips.append(x)
        z = F.linear(norm(x), self.tok_emb.weight.to(dtype)).float()
        return s.logit_softcap * torch.tanh(z / s.logit_softcap)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(ids).flatten(0, 1), targets.flatten())


def newton_schulz(matrix: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """One matrix (R, C), orthogonalised in `dtype`."""
    x = matrix.to(dtype)
    if tall := matrix.size(0) > matrix.size(1):
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class PlainMuon(torch.optim.Optimizer):
    """One matrix after the other."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, weight_decay: float, steps: int, dtype: torch.dtype
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.0, "weight_decay": weight_decay, "steps": steps})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(param)
                buffer = state["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(param.grad)
                update = newton_schulz(param.grad + group["momentum"] * buffer, group["steps"], self.dtype)
                update = update * max(1.0, param.size(0) / param.size(1)) ** 0.5
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update.to(param.dtype), alpha=-group["lr"])


class PlainTraining:
    """The plain script's model, optimizers and step."""

    def __init__(
        self, model: ModelSettings, optimizer: OptimizerSettings, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.settings, self.model = optimizer, PlainGPT(model, dtype)
        matrices, embeddings, scalars = [], [], []
        for name, param in self.model.named_parameters():
            kind = (
                embeddings
                if name in ("tok_emb.weight", "value_embedding.table.weight")
                else matrices
                if param.dim() == 2
                else scalars
            )
            if name.endswith(("resid_mix", "skip_weights")):
                kind = scalars
            kind.append(param)
        adam = {
            "betas": (optimizer.adam_beta1, optimizer.adam_beta2),
            "eps": optimizer.adam_eps,
            "fused": True,
        }
        decay = optimizer.adam_weight_decay
        self.muon = PlainMuon(
            matrices, optimizer.muon_lr, optimizer.muon_weight_decay, optimizer.newton_schulz_steps, dtype
        )
        self.optimizers = [
            self.muon,
            torch.optim.AdamW(embeddings, lr=optimizer.embedding_lr, weight_decay=decay, **adam),
            torch.optim.AdamW(scalars, lr=optimizer.scalar_lr, weight_decay=decay, **adam),
        ]
        self.peaks = [group["lr"] for optimizer_ in self.optimizers for group in optimizer_.param_groups]

    def step(self, batch: Tensor, lr_scale: float, momentum: float) -> float:
        """One optimizer step over batch (sequences, T+1); returns its loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for rows in batch.chunk(NUM_MICRO_BATCHES):
            loss = self.model(rows[:, :-1], rows[:, 1:])
            (loss / NUM_MICRO_BATCHES).backward()
            total += loss.item() / NUM_MICRO_BATCHES
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = peak * lr_scale
        self.muon.param_groups[0]["momentum"] = momentum
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return total


def batches(
    tokens: np.ndarray, sequence_length: int, order: np.ndarray, batch_sequences: int
) -> Iterator[Tensor]:
    """Batches of sequences in `order`, each (sequences, T+1), made when asked for."""
    for first in range(0, len(order) - batch_sequences + 1, batch_sequences):
        chosen = order[first : first + batch_sequences]
        yield torch.stack(
            [
                torch.from_numpy(tokens[i * sequence_length : (i + 1) * sequence_length + 1].astype(np.int64))
                for i in chosen
            ]
        )


@torch.no_grad()
def sliding_window_bpb(
    model: PlainGPT,
    tokens: np.ndarray,
    length: int,
    stride: int,
    batch_windows: int,
    base_bytes: Tensor,
    leading: Tensor,
    boundary: Tensor,
) -> float:
    """Bits per byte by windows of `length`, `stride` apart, as scripts do it: all logits of all windows,
    then a loop over the windows.
    """
    total = len(tokens) - 1
    starts = [start for start in range(0, total, stride) if start == 0 or start + length - stride < total]
    nats = bytes_ = 0.0
    for first in range(0, len(starts), batch_windows):
        chosen = starts[first : first + batch_windows]
        x, y = (
            torch.zeros(len(chosen), length, dtype=torch.int64),
            torch.zeros(len(chosen), length, dtype=torch.int64),
        )
        sizes = []
        for row, start in enumerate(chosen):
            window = torch.from_numpy(tokens[start : min(start + length, total) + 1].astype(np.int64))
            sizes.append(len(window) - 1)
            x[row, : sizes[-1]], y[row, : sizes[-1]] = window[:-1], window[1:]
        nll = F.cross_entropy(model.logits(x).flatten(0, 1), y.flatten(), reduction="none").view(
            len(chosen), length
        )
        for row, (start, size) in enumerate(zip(chosen, sizes, strict=True)):
            from_ = 0 if start == 0 else length - stride
            target, previous = y[row, from_:size], x[row, from_:size]
            nats += nll[row, from_:size].double().sum().item()
            bytes_ += (base_bytes[target] + (leading[target] & ~boundary[previous])).sum().item()
    return nats / math.log(2) / bytes_
