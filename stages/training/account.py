"""What training did to every parameter, measured on the weights and on the optimizers, not on the
settings.
"""

import statistics
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from schemas.train import DocumentRowCounts, ParameterChange, ParameterGroup
from stages.core.loader import DocumentRows
from stages.core.model import Matrix
from stages.core.muon import Muon
from stages.core.root_mean_square import root_mean_square
from stages.core.trainer import Trainer


@dataclass(frozen=True)
class _Owner:
    """The optimizer that holds a parameter, with what it holds for it."""

    optimizer: str
    lr: float
    weight_decay: float


_NO_OWNER = _Owner("none", 0.0, 0.0)


def account_of_groups(trainer: Trainer, lr_scales: list[float]) -> tuple[ParameterGroup, ...]:
    """Parameters by group and by the optimizer that really holds them.

    `lr_scales`: of every step, the first one on.
    """
    owners = _owners(trainer)
    params = dict(trainer.model.named_parameters())
    names: dict[tuple[str, _Owner], list[str]] = {}
    for group in trainer.groups:
        for name in group.names:
            names.setdefault((group.name, owners.get(name, _NO_OWNER)), []).append(name)
    return tuple(
        ParameterGroup(
            name=group,
            **asdict(owner),
            decay_factor=decay_factor(owner.lr * owner.weight_decay, lr_scales),
            parameters=tuple(members),
            num_parameters=sum(params[name].numel() for name in members),
            row_norm_spread=_row_norm_spread(trainer, [params[name] for name in members]),
        )
        for (group, owner), members in names.items()
    )


def account_of_changes(
    trainer: Trainer,
    groups: tuple[ParameterGroup, ...],
    initial: dict[str, Tensor],
    final: dict[str, Tensor],
) -> tuple[ParameterChange, ...]:
    """How far each tensor came from its initialisation, and how far from what weight decay alone would
    have made of it.
    """
    factors = {name: group.decay_factor for group in groups for name in group.parameters}
    bits = {
        f"{name}.weight": module.qat_bits
        for name, module in trainer.model.named_modules()
        if isinstance(module, Matrix)
    }
    return tuple(
        ParameterChange(
            name=name,
            shape=tuple(after.shape),
            initial_rms=root_mean_square(initial[name]),
            final_rms=root_mean_square(after),
            change_rms=root_mean_square(after - initial[name]),
            learned_rms=root_mean_square(after.double() - factors[name] * initial[name].double()),
            qat_bits=bits.get(name) or None,
        )
        for name, after in final.items()
    )


def decay_factor(lr_times_decay: float, lr_scales: list[float]) -> float:
    """Product of 1 − lr·weight_decay over the steps, as decoupled weight decay multiplies a weight
    (arXiv:1711.05101).
    """
    factor = 1.0
    for scale in lr_scales:
        factor *= 1 - scale * lr_times_decay
    return factor


def account_of_rows(trainer: Trainer) -> DocumentRowCounts | None:
    """How documents lie in the rows of training; None where rows follow the stream."""
    rows = trainer.loader.rows
    if not isinstance(rows, DocumentRows):
        return None
    return DocumentRowCounts(rows=len(rows), at_start=rows.at_start, repeated=rows.repeated)


def _owners(trainer: Trainer) -> dict[str, _Owner]:
    names: dict[Tensor, str] = {param: name for name, param in trainer.model.named_parameters()}
    return {
        names[param]: _Owner(type(optimizer).__name__.lower(), group["peak_lr"], group["weight_decay"])
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        for param in group["params"]
    }


def _row_norm_spread(trainer: Trainer, members: list[nn.Parameter]) -> float | None:
    """How unequal the rows are that row normalisation makes equal: std over mean of the momentum's row
    norms, mean of the matrices. None where Muon normalises no rows or does not hold `members`.
    """
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, Muon) and optimizer.row_normalize and members[0] in optimizer.state:
            norms = [optimizer.state[param]["momentum_buffer"].double().norm(dim=-1) for param in members]
            return statistics.fmean(float(rows.std() / rows.mean().clamp_min(1e-30)) for rows in norms)
    return None
