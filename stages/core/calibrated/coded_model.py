"""A whole model through ecsq: one multiplier for all steps, shared out by the estimate or by measurement,
and fitted to a limit.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

import torch
from torch import Tensor

from schemas.quantizer_settings import Ecsq
from schemas.tensor_formats import format_for
from stages.core.blob.packing import estimated_blob_bytes, pack
from stages.core.calibrated.calibration import Calibration, MatrixStatistics, QuantizedByText
from stages.core.calibrated.ecsq import PreparedMatrix, prepare, quantize_alike, quantize_coded
from stages.core.calibrated.fit import MAX_FIT_TRIES, fit_with_estimates
from stages.core.model import GPT
from stages.core.quantizers.by_rules import integer_bits, store_as_float
from stages.core.quantizers.coded_grid import CodedGrid
from stages.core.quantizers.quantized import QuantizedModel, QuantizedTensor

COARSEST_LOSS_NATS = 1.0
_SHARE_LIMIT = 2.0


@dataclass(frozen=True)
class CodedPlan:
    """Everything but the multiplier: prepared matrices, each one's share of it, its largest step by a
    floor, and the other tensors.
    """

    state: dict[str, Tensor]
    settings: Ecsq
    matrices: dict[str, PreparedMatrix]
    shares: dict[str, float]
    largest: dict[str, float]

    def multiplier_for(self, loss_nats: float) -> float:
        """c at which the Fisher estimate of the loss's growth is `loss_nats`: each of n weights costs
        c²/24.
        """
        return math.sqrt(24 * loss_nats / sum(matrix.weight.numel() for matrix in self.matrices.values()))

    @property
    def bytes_per_octave(self) -> float:
        """By how much a package shrinks where all steps double: a bit a weight, while codes have several."""
        return sum(matrix.weight.numel() for matrix in self.matrices.values()) / 8

    def quantized(self, multiplier: float) -> QuantizedModel:
        """Every tensor of the model. Raises ValueError, naming the tensor, as `store_as_float` does."""
        coded = self._coded(multiplier)
        tensors = []
        for name, tensor in self.state.items():
            if name in coded:
                codes, grid = coded[name]
                grid = replace(grid, rows=grid.rows.cpu(), columns=grid.columns.cpu())
                tensors.append(QuantizedTensor(name, "coded", codes.cpu(), grid=grid))
            else:
                tensors.append(store_as_float(name, tensor, self.settings))
        return QuantizedModel(self.settings.method, tuple(tensors))

    def _coded(self, multiplier: float) -> dict[str, tuple[Tensor, CodedGrid]]:
        """Codes and grid of every matrix; those of one shape together on a GPU, each by itself on a CPU."""
        alike = dict[object, list[str]]()
        for name, matrix in self.matrices.items():
            alike.setdefault(tuple(matrix.weight.shape) if matrix.weight.is_cuda else name, []).append(name)
        coded = dict[str, tuple[Tensor, CodedGrid]]()
        for names in alike.values():
            matrices = [self.matrices[name] for name in names]
            multipliers = [self.own_multiplier(name, multiplier) for name in names]
            found = (
                quantize_alike(matrices, multipliers)
                if len(names) > 1
                else [quantize_coded(matrices[0], multipliers[0])]
            )
            coded |= zip(names, found, strict=True)
        return coded

    def own_multiplier(self, name: str, multiplier: float) -> float:
        """The multiplier of one matrix: its share, no more than its floor allows."""
        return min(multiplier * self.shares[name], self.largest[name])


def ecsq_by_text(state: dict[str, Tensor], settings: Ecsq, text: Calibration) -> QuantizedByText:
    """`state` (float32) with the steps that spend the loss budget, or that meet the limit.

    Raises LimitTooSmallError where no steps do, FormatRuleError and ValueError as `plan_coded` does.
    """
    plan = plan_coded(state, settings, text.statistics)
    multiplier, divergences = plan.multiplier_for(settings.loss_budget_nats), dict[str, float]()
    fits = settings.limit_bytes is not None
    # Of the work: measuring the shares, where it is done, is taken for as much as the fit.
    measuring = (0.5 if fits else 1.0) if settings.measured_shares else 0.0
    if settings.measured_shares:
        of_matrix = measuring / len(plan.matrices)
        plan, divergences = with_measured_shares(
            plan, text.model, text.checks, multiplier, lambda done: text.progress(done * of_matrix)
        )
    tries = list[tuple[float, int]]()
    quantized = lru_cache(maxsize=1)(plan.quantized)  # the search's last try is the result
    if fits:
        of_try = (1 - measuring) / MAX_FIT_TRIES
        multiplier = _fit(plan, quantized, text, tries, lambda done: text.progress(measuring + done * of_try))
    return QuantizedByText(quantized(multiplier), multiplier, tuple(divergences.items()), tuple(tries))


def _fit(
    plan: CodedPlan,
    quantized: Callable[[float], QuantizedModel],
    text: Calibration,
    tries: list[tuple[float, int]],
    progress: Callable[[int], None],
) -> float:
    settings, fit = plan.settings, plan.settings.fit
    assert fit.limit_bytes is not None
    start = plan.multiplier_for(settings.loss_budget_nats)

    def size_by(blob_bytes: Callable[[QuantizedModel], int], how: str) -> Callable[[float], int]:
        def size(multiplier: float) -> int:
            tries.append((multiplier, blob_bytes(quantized(multiplier)) + (fit.code_bytes or 0)))
            text.say(f"steps × {multiplier / start:.3g}: {how}{tries[-1][1]:,} bytes")
            return tries[-1][1]

        return size

    return fit_with_estimates(
        size_by(lambda model: estimated_blob_bytes(model, text.metadata, settings.zstd_level), "about "),
        size_by(lambda model: len(pack(model, text.metadata, settings.zstd_level)), ""),
        start,
        plan.multiplier_for(COARSEST_LOSS_NATS),
        fit.limit_bytes,
        fit.tolerance_fraction,
        plan.bytes_per_octave,
        progress,
    )


def plan_coded(
    state: dict[str, Tensor], settings: Ecsq, statistics: Mapping[str, MatrixStatistics]
) -> CodedPlan:
    """The plan with equal shares.

    Raises FormatRuleError as `quantize_matrices` does, and ValueError, naming the tensor.
    """
    matrices = {}
    for name, tensor in state.items():
        if integer_bits(name, tensor, settings) is None:
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name} holds values that are not finite numbers")
        try:
            matrices[name] = prepare(tensor.detach().float(), statistics[name], settings.calibration.damping)
        except ValueError as error:
            raise ValueError(f"tensor {name} {error}") from error
    largest = {name: _largest_multiplier(name, matrix, settings) for name, matrix in matrices.items()}
    return CodedPlan(state, settings, matrices, dict.fromkeys(matrices, 1.0), largest)


def _largest_multiplier(name: str, matrix: PreparedMatrix, settings: Ecsq) -> float:
    if not any(fnmatchcase(name, rule.pattern) for rule in settings.floors):
        return math.inf
    return matrix.multiplier_of_bits(int(format_for(name, settings.floors).removeprefix("int")))


def with_measured_shares(
    plan: CodedPlan,
    model: GPT,
    batches: list[Tensor],
    multiplier: float,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[CodedPlan, dict[str, float]]:
    """The plan with shares by measurement, and the divergence (nats a token) that quantizing each matrix
    alone makes.

    At the best allocation every weight costs the same, so a matrix whose divergence is k times its estimate
    gets steps 1/√k as large, within a factor of 2. `batches` of training text, token ids (B, T + 1). `model`
    comes back with its own weights.
    """
    expected = predictions(model, batches)
    shares, measured = {}, {}
    for done, (name, matrix) in enumerate(plan.matrices.items(), start=1):
        parameter = model.get_parameter(name)
        codes, grid = quantize_coded(matrix, multiplier)
        with torch.no_grad():
            parameter.copy_(grid.dequantized(codes))
            measured[name] = divergence(expected, predictions(model, batches))
            parameter.copy_(matrix.weight)
        estimate = matrix.weight.numel() * multiplier**2 / 24
        ratio = math.sqrt(estimate / max(measured[name], estimate / _SHARE_LIMIT**2 / 4))
        shares[name] = min(max(ratio, 1 / _SHARE_LIMIT), _SHARE_LIMIT)
        progress(done)
    return replace(plan, shares=shares), measured


@torch.no_grad()
def predictions(model: GPT, batches: Iterable[Tensor]) -> list[Tensor]:
    """Log-probabilities (B, T, V) of the next token for each batch of token ids (B, T + 1)."""
    return [torch.log_softmax(model.logits(model.hidden(ids[:, :-1])), dim=-1) for ids in batches]


def divergence(expected: list[Tensor], found: list[Tensor]) -> float:
    """Mean Kullback-Leibler divergence, nats a token: how much the loss grows on text drawn from the
    expected predictions.
    """
    total = sum(
        float((a.exp() * (a - b)).sum(dtype=torch.float64)) for a, b in zip(expected, found, strict=True)
    )
    return total / sum(a.shape[0] * a.shape[1] for a in expected)
