"""Muon: momentum whose update is orthogonalised by Newton-Schulz iterations, over stacked matrices of
equal shape.

Source: Keller Jordan, https://kellerjordan.github.io/posts/muon/. Work is shared over processes: each
orthogonalises its part of a stack, then one all-gather gives everyone all updates. Momentum is kept whole
everywhere, so that one process can write the checkpoint.
"""

import torch
import torch.distributed as dist
from torch import Tensor

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: (N, R, C) -> (N, R, C), singular values near 1 (0.7 to
    1.2).
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def normalize_rows(matrices: Tensor) -> Tensor:
    """(N, R, C) with each row divided by its 2-norm; a row of zeros stays.

    Rows of different size then count alike in the orthogonalisation (MuonEq-R, arXiv:2603.28254;
    parameter-golf pull requests 1217 and 1260).
    """
    return matrices / matrices.norm(dim=-1, keepdim=True).clamp_min(1e-7)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised update × max(1, rows/columns)^0.5, decoupled weight decay.

    All parameters must be matrices. `work_dtype` is the precision of the iterations. With `row_normalize`
    each update's rows get one norm before them.
    """

    def __init__(
        self,
        params: list[torch.nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        steps: int,
        work_dtype: torch.dtype,
        row_normalize: bool = False,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps}
        )
        self.work_dtype, self.row_normalize = work_dtype, row_normalize
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for param in group["params"]:
                by_shape.setdefault(param.shape, []).append(param)
            for shape, params in by_shape.items():
                grads = [param.grad for param in params if param.grad is not None]
                assert len(grads) == len(params), "every trained matrix has a gradient"
                buffers = [self.state[param]["momentum_buffer"] for param in params]
                momentum = group["momentum"]
                torch._foreach_mul_(buffers, momentum)
                torch._foreach_add_(buffers, grads)
                nesterov = torch._foreach_add(grads, buffers, alpha=momentum)
                updates = self._orthogonalize_shared(nesterov, group["steps"])
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(
                    params, list(updates.to(params[0].dtype).unbind()), alpha=-group["lr"] * scale
                )

    def _orthogonalize_shared(self, updates: tuple[Tensor, ...], steps: int) -> Tensor:
        """N matrices -> (N, R, C) orthogonalised, each process having done a share of them."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        if world == 1:
            return self._orthogonalize(torch.stack(updates), steps)
        share = -(-len(updates) // world)
        mine = list(updates[dist.get_rank() * share : (dist.get_rank() + 1) * share])
        mine += [torch.zeros_like(updates[0])] * (share - len(mine))
        done = self._orthogonalize(torch.stack(mine), steps)
        gathered = torch.empty(world * share, *updates[0].shape, dtype=self.work_dtype, device=done.device)
        dist.all_gather_into_tensor(gathered, done.contiguous())
        return gathered[: len(updates)]

    def _orthogonalize(self, updates: Tensor, steps: int) -> Tensor:
        if self.row_normalize:
            updates = normalize_rows(updates)
        return orthogonalize(updates.to(self.work_dtype), steps)
