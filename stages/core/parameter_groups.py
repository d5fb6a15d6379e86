"""Which optimizer updates which parameter: every parameter is in exactly one group, checked when they are
made.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from schemas.train_settings import OptimizerSettings
from stages.core.model import GPT
from stages.core.muon import Muon


@dataclass(frozen=True)
class ParamGroup:
    """Names of the parameters that share optimizer ("muon", "adamw" or "none"), learning rate and weight
    decay.
    """

    name: str
    optimizer: str
    lr: float
    weight_decay: float
    names: tuple[str, ...]


def group_parameters(model: GPT, settings: OptimizerSettings) -> list[ParamGroup]:
    """Matrices to Muon, embeddings and everything else to AdamW, frozen and idle parameters to no optimizer.

    Raises ValueError for a pattern in `frozen` that matches nothing, AssertionError if a parameter is in no
    group or in two.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in settings.frozen:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"train.optimizer.frozen: no parameter matches {pattern!r}; there are "
                f"{', '.join(names[:8])}, …"
            )
    embeddings = {"tok_emb.weight", "value_embedding.table.weight", "head.weight"}
    idle = set(model.idle_parameters())
    frozen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in settings.frozen)} - idle

    def pick(*wanted: bool) -> str:
        return ("idle", "frozen", "embeddings", "matrices", "scalars")[wanted.index(True)]

    members: dict[str, list[str]] = {}
    for name in names:
        kind = pick(name in idle, name in frozen, name in embeddings, name.endswith(".weight"), True)
        members.setdefault(kind, []).append(name)
    shared = settings.adam_weight_decay
    of_embeddings, of_scalars = settings.embedding_weight_decay, settings.scalar_weight_decay
    table = {
        "matrices": ("muon", settings.muon_lr, settings.muon_weight_decay),
        "embeddings": ("adamw", settings.embedding_lr, shared if of_embeddings is None else of_embeddings),
        "scalars": ("adamw", settings.scalar_lr, shared if of_scalars is None else of_scalars),
        "frozen": ("none", 0.0, 0.0),
        "idle": ("none", 0.0, 0.0),
    }
    groups = [ParamGroup(kind, *table[kind], names=tuple(members[kind])) for kind in table if kind in members]
    listed = sorted(name for group in groups for name in group.names)
    assert listed == sorted(names), "every parameter belongs to exactly one group"
    return groups


def make_optimizers(
    model: GPT, groups: list[ParamGroup], settings: OptimizerSettings, work_dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Muon and AdamW over the groups; parameters without optimizer stop requiring gradients."""
    params = dict(model.named_parameters())
    adam_groups: list[dict] = []
    optimizers: list[torch.optim.Optimizer] = []
    for group in groups:
        members: list[nn.Parameter] = [params[name] for name in group.names]
        if group.optimizer == "none":
            for param in members:
                param.requires_grad_(False)
        elif group.optimizer == "muon":
            optimizers.append(
                Muon(
                    members,
                    group.lr,
                    settings.muon_momentum_start,
                    group.weight_decay,
                    settings.newton_schulz_steps,
                    work_dtype,
                    settings.muon_row_normalize,
                )
            )
        else:
            adam_groups.append({"params": members, "lr": group.lr, "weight_decay": group.weight_decay})
    if adam_groups:
        betas = (settings.adam_beta1, settings.adam_beta2)
        optimizers.append(torch.optim.AdamW(adam_groups, betas=betas, eps=settings.adam_eps, fused=True))
    for optimizer in optimizers:
        for param_group in optimizer.param_groups:
            param_group["peak_lr"] = param_group["lr"]
    return optimizers
