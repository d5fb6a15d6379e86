"""Averaging of weights: which snapshots take part, and their mean in float64.

Sources: stochastic weight averaging, arXiv:1803.05407; in float64 because a sum in bfloat16 has been seen to
    ruin a model.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from schemas.averaging_settings import AveragingSettings


def averages_snapshots(settings: AveragingSettings) -> bool:
    """Whether the merged model is made of snapshots, and not of weights that training ended with."""
    return settings.method in ("swa", "ema")


def choose_snapshots(lr_scales: list[float], settings: AveragingSettings) -> list[int]:
    """Indices, oldest first, of the snapshots in the window, every n-th counted from the last one."""
    inside = [index for index, lr_scale in enumerate(lr_scales) if lr_scale < settings.start_lr_scale]
    return sorted(inside[:: -settings.every_nth])


def averaging_weights(count: int, settings: AveragingSettings) -> list[float]:
    """Share of each of `count` snapshots, oldest first; they sum to 1."""
    if settings.method != "ema":
        return [1.0 / count] * count
    shares = [1.0] + [1.0 - settings.ema_decay] * (count - 1)
    return [share * settings.ema_decay ** (count - 1 - index) for index, share in enumerate(shares)]


def average_states(states: Iterable[dict[str, Tensor]], shares: list[float]) -> dict[str, Tensor]:
    """Weighted mean of equal-shaped states, one held at a time, accumulated in float64, returned as float32.

    Raises ValueError naming the first tensor that is missing, extra or of another shape.
    """
    total: dict[str, Tensor] = {}
    for index, (state, share) in enumerate(zip(states, shares, strict=True)):
        if not total:
            total = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in state.items()}
        if different := sorted(set(state) ^ set(total)):
            raise ValueError(
                f"snapshot {index} and the first one do not both have the tensor {different[0]!r}"
            )
        for name, tensor in state.items():
            if tensor.shape != total[name].shape:
                raise ValueError(
                    f"tensor {name!r} of snapshot {index} has shape {tuple(tensor.shape)}, not "
                    f"{tuple(total[name].shape)}"
                )
            total[name].add_(tensor.double(), alpha=share)
    return {name: tensor.float() for name, tensor in total.items()}
