"""The training loop: batches in; weights, snapshots and figures out.

Writes no file: what to keep is its caller's business.

Every process runs this; all compute the same global step. The clock excludes only warm-up: what snapshots and
checkpoints cost the loop counts. A run resumes bit for bit from the state that it handed to
`Hooks.checkpoint`.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from schemas.train_settings import ScheduleSettings, TrainSettings
from stages.core.distributed import compute_dtype, join_processes
from stages.core.loader import BatchLoader, TokenStream, in_pieces
from stages.core.model import GPT
from stages.core.parameter_groups import ParamGroup, group_parameters, make_optimizers
from stages.core.schedule import (
    Clock,
    context_at,
    ema_share_at,
    graphs_from,
    loops_on_at,
    lr_scale_at,
    momentum_at,
    progress_at,
    qat_on_at,
    snapshot_due,
)


class DivergedError(ValueError):
    """The loss or the norm of its gradient is no longer a finite number."""


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step. `seconds` is the training clock after it; `context`: tokens of a piece that the
    model was given, 0 where an earlier version did not record it.
    """

    step: int
    loss: float
    lr_scale: float
    muon_momentum: float
    tokens: int
    seconds: float
    grad_norm: float
    qat_on: bool
    snapshot: bool
    context: int = 0


def step_line(metrics: StepMetrics, schedule: ScheduleSettings) -> str:
    """The line of a training log about one step."""
    share = progress_at(Clock(metrics.step, metrics.seconds), schedule)
    return (
        f"step {metrics.step}/{schedule.max_steps} ({share:.0%}) loss {metrics.loss:.4f} lr scale "
        f"{metrics.lr_scale:.3f} grad norm {metrics.grad_norm:.2f} {metrics.seconds:.1f} s "
        f"{metrics.tokens / max(metrics.seconds, 1e-9):.0f} tokens/s"
    )


@dataclass
class TrainState:
    """Everything that a later process needs to go on: tensors by name, and where the clock stood."""

    tensors: dict[str, Tensor]
    steps: int
    seconds: float
    qat_steps: int
    last_lr_scale: float
    last_qat_on: bool


@dataclass
class Hooks:
    """What the caller does at each event; called on the first process only.

    Tensors handed over are copies.
    """

    step: Callable[[StepMetrics], None] = lambda metrics: None
    snapshot: Callable[[int, float, bool, dict[str, Tensor]], None] = lambda *what: None
    checkpoint_due: Callable[[], bool] = lambda: False
    checkpoint: Callable[[TrainState], None] = lambda state: None


@dataclass
class TrainedModel:
    """What training leaves in memory."""

    model: GPT
    groups: list[ParamGroup]
    initial: dict[str, Tensor]
    steps: int
    last_lr_scale: float
    last_qat_on: bool
    qat_steps: int
    seconds: float
    warmup_seconds: float
    stopped_by: str
    sequences_in_split: int
    ema: dict[str, Tensor] | None = None
    """Exponential mean of the weights after each step, float32 on the CPU; None where none was asked for."""
    hook_seconds: dict[str, float] = field(default_factory=dict)


Pending = tuple[StepMetrics, Callable[[], list[float]]]
"""Metrics of a step, and what reads its loss and gradient norm."""


class Trainer:
    """One run of `TrainSettings` over the training shards."""

    def __init__(
        self, settings: TrainSettings, shards: list[Path], hooks: Hooks, resume: TrainState | None = None
    ) -> None:
        self.settings, self.hooks = settings, hooks
        self.rank, self.world, self.device = join_processes(settings.compute)
        self.dtype = compute_dtype(settings.compute)
        stream = TokenStream(shards)
        self.loader = BatchLoader(
            stream, settings.data, settings.seed, self.rank, self.world, pin=self.device.type == "cuda"
        )
        self.model = GPT(settings.model)
        self.model.init_weights(settings.seed)
        self.initial = {name: param.detach().clone() for name, param in self.model.named_parameters()}
        self.model.to(self.device)
        self.groups = group_parameters(self.model, settings.optimizer)
        self.optimizers = make_optimizers(self.model, self.groups, settings.optimizer, self.dtype)
        if settings.qat.start_lr_scale > 0:
            self.model.prepare_qat(settings.qat)
        if settings.compute.fused_kernels:
            # Triton, which it needs, comes with CUDA builds of PyTorch only.
            from stages.core.fused_kernels import use_fused_kernels

            use_fused_kernels(self.model, self.device)
        self.ema: list[Tensor] = []
        if settings.snapshots.ema_horizon is not None:
            self.ema = [param.detach().clone() for param in self.model.parameters()]
        self.clock, self.qat_steps = Clock(0, 0.0), 0
        self.context = self.given_context = settings.data.sequence_length
        self.last_lr_scale, self.last_qat_on = 1.0, False
        if resume is not None:
            self._load(resume)
        self.network: nn.Module = self.model
        if settings.compute.compile:
            # DistributedDataParallel would cut the graph to exchange gradients earlier; it cannot cut around
            # gradients of our own.
            torch._dynamo.config.optimize_ddp = False
            # Beyond its limit of graphs PyTorch would go on uncompiled.
            torch._dynamo.config.recompile_limit = max(8, len(graphs_from(0.0, settings)))
            self.network = torch.compile(self.model, dynamic=False)  # type: ignore[assignment]
        if self.world > 1:
            device_ids = [self.device.index] if self.device.type == "cuda" else None
            self.network = nn.parallel.DistributedDataParallel(
                self.network, device_ids=device_ids, gradient_as_bucket_view=True
            )
        self.trainable = [param for param in self.model.parameters() if param.requires_grad]
        self.hook_seconds = {"snapshot": 0.0, "checkpoint": 0.0}

    def run(self) -> TrainedModel:
        """Train to the first cap. Raises DivergedError when the loss or its gradient is not finite."""
        settings, schedule = self.settings, self.settings.schedule
        warmup_seconds = self._warm_up()
        pending: list[Pending] = []
        self.began = time.perf_counter() - self.clock.seconds
        while progress_at(self.clock, schedule) < 1.0:
            before = self.clock
            lr_scale = lr_scale_at(before, schedule)
            momentum = momentum_at(before, schedule, settings.optimizer)
            qat_on = qat_on_at(lr_scale, settings.qat)
            self.model.use_loops(loops_on_at(before, schedule))
            self.context = context_at(before, schedule, settings.data)
            loss, grad_norm = self._step(before.steps, lr_scale, momentum, qat_on)
            figures = self._read_later(loss, grad_norm)

            self._wait_for_device()
            self.clock = Clock(before.steps + 1, self._agree(time.perf_counter() - self.began))
            self._update_ema(before)
            due = snapshot_due(before, self.clock, lr_scale, schedule, settings.snapshots)
            pending.append((self._row(lr_scale, momentum, qat_on, due), figures))
            # A GPU's figures are read a few steps late, so that the host never waits for the last step. What
            # is kept waits for them: neither a snapshot nor a checkpoint holds weights that are not finite.
            self._flush(pending, keep=0 if due or self.device.type == "cpu" else 4)
            if due:
                self._timed("snapshot", self._take_snapshot, lr_scale, qat_on)
            if self.rank == 0 and self.hooks.checkpoint_due():
                self._flush(pending, keep=0)
                self._timed("checkpoint", self._take_checkpoint)
        self._flush(pending, keep=0)
        self.model.use_loops(True)
        self.loader.close()
        return self._result(warmup_seconds)

    def _step(self, step: int, lr_scale: float, momentum: float, qat_on: bool) -> tuple[Tensor, Tensor]:
        """One optimizer step: mean loss of the global batch and gradient norm, still on the device."""
        self.last_lr_scale, self.last_qat_on = lr_scale, qat_on
        if qat_on:
            self.model.update_qat()
            self.qat_steps += 1
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_scale
                if "momentum" in group:
                    group["momentum"] = momentum
        loss = self._backward(self.loader.batch(step))
        limit = self.settings.optimizer.grad_clip_norm or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.trainable, limit)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        return loss, grad_norm

    def _backward(self, batch: list[Tensor]) -> Tensor:
        """Gradients of the mean loss over a batch whose rows are cut into pieces of `self.context` tokens."""
        sequences = sum(len(rows) for rows in batch)
        total = torch.zeros((), device=self.device)
        for index, rows in enumerate(batch):
            last = index == len(batch) - 1
            quiet = self.network.no_sync() if self.world > 1 and not last else nullcontext()  # type: ignore[operator]
            with quiet:
                ids = in_pieces(rows.to(self.device, non_blocking=True), self.context)
                self.given_context = ids.shape[1] - 1
                loss = self.network(ids[:, :-1], ids[:, 1:], self.dtype) * (len(rows) / sequences)
                loss.backward()
            total += loss.detach()
        if self.world > 1:
            dist.all_reduce(total)
        return total / self.world

    def _update_ema(self, before: Clock) -> None:
        """Take the step just made into the mean of all steps (parameter-golf pull request 287)."""
        horizon = self.settings.snapshots.ema_horizon
        if horizon is not None:
            share = ema_share_at(before, self.clock, self.settings.schedule, horizon)
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, list(self.model.parameters()), share)

    def _row(self, lr_scale: float, momentum: float, qat_on: bool, snapshot: bool) -> StepMetrics:
        """Metrics of the step just taken, without the two figures that are still on the device."""
        steps, seconds = self.clock.steps, self.clock.seconds
        tokens = steps * self.settings.data.batch_tokens
        nan, context = math.nan, self.given_context
        return StepMetrics(steps, nan, lr_scale, momentum, tokens, seconds, nan, qat_on, snapshot, context)

    def _result(self, warmup_seconds: float) -> TrainedModel:
        schedule = self.settings.schedule
        capped = schedule.step_seconds is not None and self.clock.seconds >= schedule.step_seconds
        return TrainedModel(
            model=self.model,
            groups=self.groups,
            initial=self.initial,
            steps=self.clock.steps,
            last_lr_scale=self.last_lr_scale,
            last_qat_on=self.last_qat_on,
            qat_steps=self.qat_steps,
            seconds=self.clock.seconds,
            warmup_seconds=warmup_seconds,
            stopped_by="max_seconds" if capped and self.clock.steps < schedule.max_steps else "max_steps",
            sequences_in_split=self.loader.order.num_sequences,
            ema=self.ema_weights() if self.ema else None,
            hook_seconds=self.hook_seconds,
        )

    def weights(self) -> dict[str, Tensor]:
        """Copies of all parameters on the CPU (float32).

        Cloned: on the CPU a plain `.cpu()` would alias the live weights.
        """
        return {name: param.detach().to("cpu", copy=True) for name, param in self.model.named_parameters()}

    def ema_weights(self) -> dict[str, Tensor]:
        """The same of the mean over the steps; empty where none is kept."""
        names = (name for name, _ in self.model.named_parameters())
        return {name: mean.to("cpu", copy=True) for name, mean in zip(names, self.ema, strict=False)}

    def state(self) -> TrainState:
        tensors = {f"model/{name}": tensor for name, tensor in self.weights().items()}
        tensors |= {f"ema/{name}": tensor for name, tensor in self.ema_weights().items()}
        names: dict[Tensor, str] = {param: name for name, param in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for param, values in optimizer.state.items():
                for key, value in values.items():
                    tensors[f"optimizer/{names[param]}/{key}"] = (
                        torch.as_tensor(value).detach().to("cpu", copy=True)
                    )
        tensors["rng"] = torch.get_rng_state()
        return TrainState(
            tensors,
            self.clock.steps,
            self.clock.seconds,
            self.qat_steps,
            self.last_lr_scale,
            self.last_qat_on,
        )

    def _load(self, state: TrainState) -> None:
        params = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, param in params.items():
                param.copy_(state.tensors[f"model/{name}"])
            for name, mean in zip(params, self.ema, strict=False):
                mean.copy_(state.tensors[f"ema/{name}"])
        owners = {
            name: opt
            for opt in self.optimizers
            for group in opt.param_groups
            for name in params
            if _holds(group, params[name])
        }
        for full_name, value in state.tensors.items():
            if full_name.startswith("optimizer/"):
                _, name, key = full_name.split("/")
                owners[name].state[params[name]][key] = value.to(self.device, copy=True)
        torch.set_rng_state(state.tensors["rng"])
        self.clock, self.qat_steps = Clock(state.steps, state.seconds), state.qat_steps
        self.last_lr_scale, self.last_qat_on = state.last_lr_scale, state.last_qat_on

    def _warm_up(self) -> float:
        """Forward and backward passes that only compile: each graph that the rest of the run needs.

        Weights, optimizers, data order and clock stay as they are.
        """
        began = time.perf_counter()
        progress = progress_at(self.clock, self.settings.schedule)
        for looped, context in graphs_from(progress, self.settings):
            self.model.use_loops(looped)
            self.context = context
            for _ in range(self.settings.schedule.compile_warmup_steps):
                self._backward(self.loader.batch(self.clock.steps))
                self.model.zero_grad(set_to_none=True)
        self._wait_for_device(everything=True)
        return time.perf_counter() - began

    def _read_later(self, loss: Tensor, grad_norm: Tensor) -> Callable[[], list[float]]:
        """What reads both figures.

        On a GPU they travel behind the step: `float` of a tensor there waits for all work launched so far,
        and the GPU would then stand still until the host has launched more.
        """
        if self.device.type == "cpu":
            return lambda: [float(loss), float(grad_norm)]
        figures, arrived = torch.empty(2, pin_memory=True), torch.cuda.Event()
        figures.copy_(torch.stack((loss, grad_norm)), non_blocking=True)
        arrived.record()

        def read() -> list[float]:
            arrived.synchronize()
            return figures.tolist()

        return read

    def _flush(self, pending: list[Pending], keep: int) -> None:
        """Read figures of all but the last `keep` steps, check them and hand them on."""
        while len(pending) > keep:
            row, figures = pending.pop(0)
            loss, grad_norm = figures()
            for name, figure in (("training loss", loss), ("gradient norm", grad_norm)):
                if not math.isfinite(figure):
                    raise DivergedError(f"the {name} is {figure} at step {row.step}")
            if self.rank == 0:
                self.hooks.step(replace(row, loss=loss, grad_norm=grad_norm))

    def _take_snapshot(self, lr_scale: float, qat_on: bool) -> None:
        self.hooks.snapshot(self.clock.steps, lr_scale, qat_on, self.weights())

    def _take_checkpoint(self) -> None:
        self.hooks.checkpoint(self.state())

    def _timed(self, what: str, action: Callable[..., None], *arguments: Any) -> None:
        if self.rank == 0:
            began = time.perf_counter()
            action(*arguments)
            self.hook_seconds[what] += time.perf_counter() - began

    def _agree(self, seconds: float) -> float:
        """The first process's clock, so that all processes see the same schedule."""
        if self.world == 1 or self.settings.schedule.max_seconds is None:
            return seconds
        clock = torch.tensor([seconds], dtype=torch.float64)
        dist.broadcast(clock, src=0)
        return float(clock)

    def _wait_for_device(self, everything: bool = False) -> None:
        """Let the host run at most two steps ahead of the GPU, so that its clock means something."""
        if self.device.type != "cuda":
            return
        if everything:
            torch.cuda.synchronize()
            return
        event = torch.cuda.Event()
        event.record()
        self._events = [*getattr(self, "_events", []), event]
        if len(self._events) > 2:
            self._events.pop(0).synchronize()


def _holds(group: dict, param: nn.Parameter) -> bool:
    return any(member is param for member in group["params"])
