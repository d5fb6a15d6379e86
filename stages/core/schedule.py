"""Learning rate, momentum, snapshot and QAT windows as functions of progress; pure, so that plots and
tests can ask it.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from schemas.qat_settings import QatSettings
from schemas.train_settings import (
    DataSettings,
    OptimizerSettings,
    ScheduleSettings,
    SnapshotSettings,
    TrainSettings,
)


@dataclass(frozen=True)
class Clock:
    """Where training stands before a step: steps done and seconds of training, evaluation and warm-up
    excluded.
    """

    steps: int
    seconds: float


def progress_at(clock: Clock, settings: ScheduleSettings) -> float:
    """Share of the run that is done, 0 to 1: of steps or of seconds, whichever is further."""
    share = clock.steps / settings.max_steps
    if settings.step_seconds is not None:
        share = max(share, clock.seconds / settings.step_seconds)
    return min(share, 1.0)


def lr_scale_at(clock: Clock, settings: ScheduleSettings) -> float:
    """1, then linearly to 0 at the cap, but never below `min_lr_scale` (parameter-golf pull request 1787)."""
    return max(_warmdown_at(clock, settings), settings.min_lr_scale)


def _warmdown_at(clock: Clock, settings: ScheduleSettings) -> float:
    """`warmdown_steps` counts in steps of the length measured so far."""
    if settings.warmdown_fraction is not None:
        if settings.warmdown_fraction == 0:
            return 1.0
        return min(1.0, (1.0 - progress_at(clock, settings)) / settings.warmdown_fraction)
    assert settings.warmdown_steps is not None
    if settings.warmdown_steps == 0:
        return 1.0
    scale = (settings.max_steps - clock.steps) / settings.warmdown_steps
    if settings.step_seconds is not None and clock.steps:
        warmdown_seconds = settings.warmdown_steps * clock.seconds / clock.steps
        scale = min(scale, (settings.step_seconds - clock.seconds) / max(warmdown_seconds, 1e-9))
    return min(1.0, max(0.0, scale))


def momentum_at(clock: Clock, schedule: ScheduleSettings, settings: OptimizerSettings) -> float:
    """Muon's momentum: linear from start to end over its warm-up."""
    if settings.muon_momentum_warmup_steps is not None:
        span, done = float(settings.muon_momentum_warmup_steps), float(clock.steps)
    else:
        assert settings.muon_momentum_warmup_fraction is not None
        span, done = settings.muon_momentum_warmup_fraction, progress_at(clock, schedule)
    share = min(1.0, done / span) if span else 1.0
    return settings.muon_momentum_start + share * (settings.muon_momentum - settings.muon_momentum_start)


def ema_share_at(before: Clock, after: Clock, schedule: ScheduleSettings, horizon: float) -> float:
    """Weight of the newest step in the exponential mean of all steps.

    A step that makes the progress p takes 1 - exp(-p/horizon). So the mean looks back over the same share of
    a run whatever its number of steps, and a step that took longer counts for more.
    """
    progress = progress_at(after, schedule) - progress_at(before, schedule)
    return -math.expm1(-progress / horizon)


def loops_on_at(clock: Clock, schedule: ScheduleSettings) -> bool:
    """Whether the step at `clock` repeats the looped layers."""
    return progress_at(clock, schedule) >= schedule.loop_start_fraction


def context_at(clock: Clock, schedule: ScheduleSettings, data: DataSettings) -> int:
    """Tokens of context in the step at `clock` (progressive context, parameter-golf pull request 2014)."""
    return data.context_at(progress_at(clock, schedule))


def graphs_from(progress: float, settings: TrainSettings) -> list[tuple[bool, int]]:
    """Whether layers loop, and the tokens of context, in each part of a run from `progress` on, in order."""
    schedule, data = settings.schedule, settings.data
    bounds = {0.0, *data.context_ends, 1.0}
    if settings.model.loop_passes > 1:
        bounds.add(schedule.loop_start_fraction)
    return [
        (start >= schedule.loop_start_fraction, data.context_at(start))
        for start, end in pairwise(sorted(bounds))
        if end > progress
    ]


def qat_on_at(lr_scale: float, settings: QatSettings) -> bool:
    return lr_scale < settings.start_lr_scale


def snapshot_due(
    before: Clock, after: Clock, lr_scale: float, schedule: ScheduleSettings, settings: SnapshotSettings
) -> bool:
    """Whether the step from `before` to `after`, taken at `lr_scale`, ends with a snapshot."""
    if lr_scale >= settings.start_lr_scale:
        return False
    if settings.every_steps is not None:
        return after.steps % settings.every_steps == 0
    assert settings.every_fraction is not None
    count_before = int(progress_at(before, schedule) / settings.every_fraction + 1e-9)
    return int(progress_at(after, schedule) / settings.every_fraction + 1e-9) > count_before
