"""What text says about the matrices of a model: how much a change of each weight costs, as a
Kronecker-factored Fisher matrix.

For a matrix W (R, C) with inputs x and gradients δ at its outputs, the loss grows by about ½ Σ_i r_i e_iᵀ H
e_i when row i changes by e_i; r_i = E[δ_i²] and H = Σ |δ|² xxᵀ / Σ |δ|² (K-FAC, arXiv:1503.05671; tokens
weighted by what they matter, as in arXiv:2505.07004). Targets are drawn from the model's own predictions, so
that this is the Fisher matrix and the text's noise stays out. Shape legend: B batch, T tokens, R rows, C
columns.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.core.model import GPT, Matrix
from stages.core.quantizers.quantized import QuantizedModel


@dataclass(frozen=True)
class MatrixStatistics:
    """`hessian` float64 (C, C) and `row_weights` float64 (R,), per token, in nats over squared weights.

    On the device of the model that read the text.
    """

    hessian: Tensor
    row_weights: Tensor


@dataclass(frozen=True)
class Calibration:
    """What a quantizer that reads text is given: the model with its own weights, the statistics of every
    matrix, and batches of token ids (B, T + 1) int64 on which predictions can be compared.

    `metadata` is what the blob will hold. `say` gets lines of a log, `progress` the share of the quantizer's
    own work that is done, up to 1.
    """

    model: GPT
    statistics: Mapping[str, MatrixStatistics]
    checks: list[Tensor]
    metadata: dict[str, Any]
    say: Callable[[str], None]
    progress: Callable[[float], None]


@dataclass(frozen=True)
class QuantizedByText:
    """A quantized model and what was measured on the way.

    Of a quantizer that chooses its steps: the multiplier of all of them, the divergence (nats a token) of
    each matrix quantized by itself where shares were measured, and where a limit was fitted the tries as
    (multiplier, bytes of the package).
    """

    model: QuantizedModel
    multiplier: float | None = None
    divergences: tuple[tuple[str, float], ...] = ()
    tries: tuple[tuple[float, int], ...] = ()


@dataclass
class _Sums:
    """Over all tokens: Σ |δ|² xxᵀ (C, C), Σ |δ|², and Σ δ² (R,); one for each way in which a matrix is
    used.
    """

    inputs: Tensor
    weight: Tensor
    rows: Tensor


def collect_statistics(
    model: GPT,
    batches: Iterable[Tensor],
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, MatrixStatistics]:
    """Statistics of every matrix by its weight's name, from `batches` of token ids (B, T + 1) int64.

    `dtype` is that of the model's activations and their gradients; sums over tokens are in float32 or more.
    Memory is a C×C matrix for each weight besides one batch's activations, however much text there is.
    Gradients of the model are cleared. Raises ValueError when there are no batches.
    """
    sums: dict[tuple[str, str], _Sums] = {}
    names = {module: name for name, module in model.named_modules() if isinstance(module, Matrix)}
    handles = [
        module.register_forward_hook(_watch(sums, name), with_kwargs=True) for module, name in names.items()
    ]
    look_ups = {module: _watched_look_up(sums, name, module) for module, name in names.items()}
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    num_tokens = 0
    try:
        for module, look_up in look_ups.items():
            module.look_up = look_up  # type: ignore[method-assign, assignment]
        for done, ids in enumerate(batches, start=1):
            predictions = torch.log_softmax(model.logits(model.hidden(ids[:, :-1], dtype)), dim=-1).flatten(
                0, 1
            )
            drawn = torch.multinomial(predictions.detach().exp(), 1, generator=generator)
            model.zero_grad(set_to_none=True)
            (-predictions.gather(1, drawn).sum()).backward()
            num_tokens += len(drawn)
            progress(done)
    finally:
        for handle in handles:
            handle.remove()
        for module in look_ups:
            del module.look_up
        model.zero_grad(set_to_none=True)
    if not num_tokens:
        raise ValueError("calibration needs at least one batch of text")
    return {
        f"{name}.weight": _combine([found for (owner, _), found in sums.items() if owner == name], num_tokens)
        for name in names.values()
    }


def _watch(sums: dict[tuple[str, str], _Sums], name: str) -> Callable[..., None]:
    def after_forward(
        module: Matrix, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
    ) -> None:
        x = args[0].detach().reshape(-1, args[0].size(-1)).float()
        row_scale = args[1] if len(args) > 1 else kwargs.get("row_scale")

        def with_gradient(gradient: Tensor) -> None:
            delta = gradient.detach().reshape(-1, gradient.size(-1)).float()
            if row_scale is not None:  # the output is row_scale · Wx, the matrix is W
                delta = delta * row_scale.detach()
            squares = delta.square()
            weight = squares.sum(dim=1, keepdim=True)
            _add(
                sums,
                (name, "product"),
                _Sums((x * weight).T @ x, weight.sum(dtype=torch.float64), squares.sum(dim=0)),
            )

        output.register_hook(with_gradient)

    return after_forward


def _watched_look_up(
    sums: dict[tuple[str, str], _Sums], name: str, module: Matrix
) -> Callable[[Tensor, torch.dtype], Tensor]:
    """A look-up reads one row for each token: the gradient itself stands in that row, for all columns."""

    def look_up(ids: Tensor, dtype: torch.dtype) -> Tensor:
        output = Matrix.look_up(module, ids, dtype)

        def with_gradient(gradient: Tensor) -> None:
            delta = gradient.detach().reshape(-1, gradient.size(-1)).float()
            squares = delta.square().sum(dim=1)
            rows = torch.zeros(len(module.weight), device=ids.device).index_add_(0, ids.flatten(), squares)
            _add(sums, (name, "look-up"), _Sums(delta.T @ delta, squares.sum(dtype=torch.float64), rows))

        output.register_hook(with_gradient)
        return output

    return look_up


def _add(sums: dict[tuple[str, str], _Sums], key: tuple[str, str], new: _Sums) -> None:
    new = _Sums(new.inputs.double(), new.weight, new.rows.double())
    found = sums.setdefault(key, new)
    if found is not new:
        found.inputs += new.inputs
        found.weight = found.weight + new.weight
        found.rows += new.rows


def _combine(uses: list[_Sums], num_tokens: int) -> MatrixStatistics:
    """One H and r for a matrix used in several ways (the tied embedding): H is their sum, each row
    weighted by its own trace.
    """
    hessians = [use.inputs / use.weight.clamp_min(torch.finfo(torch.float64).tiny) for use in uses]
    rows = [use.rows / num_tokens for use in uses]
    if len(uses) == 1:
        return MatrixStatistics(hessians[0], rows[0])
    total = sum(
        (row.sum() * hessian for row, hessian in zip(rows, hessians, strict=True)),
        torch.zeros_like(hessians[0]),
    )
    total = total / total.trace()
    return MatrixStatistics(
        total,
        sum(
            (row * hessian.trace() for row, hessian in zip(rows, hessians, strict=True)),
            torch.zeros_like(rows[0]),
        ),
    )
