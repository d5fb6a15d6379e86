import math
from dataclasses import replace

import pytest

from schemas.qat_settings import QatSettings
from schemas.train_settings import (
    DataSettings,
    OptimizerSettings,
    ScheduleSettings,
    SnapshotSettings,
    TrainSettings,
)
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

STEPS = ScheduleSettings(max_steps=100, warmdown_fraction=0.4)
TIMED = ScheduleSettings(max_steps=1000, max_seconds=60.0, warmdown_fraction=0.5)


def test_progress_is_steps_or_seconds_whichever_is_further() -> None:
    assert progress_at(Clock(25, 999.0), STEPS) == 0.25
    assert progress_at(Clock(100, 30.0), TIMED) == 0.5
    assert progress_at(Clock(900, 30.0), TIMED) == 0.9
    assert progress_at(Clock(5, 61.0), TIMED) == 1.0


def test_a_reserve_ends_the_steps_so_much_earlier() -> None:
    reserved = replace(TIMED, reserve_seconds=12.0)
    assert progress_at(Clock(0, 24.0), reserved) == 0.5
    assert lr_scale_at(Clock(0, 48.0), reserved) == 0.0
    for settings, seconds in ((STEPS, 1.0), (TIMED, 60.0)):
        with pytest.raises(
            ValueError, match=rf"reserve_seconds = {seconds:g}: must be less than max_seconds"
        ):
            replace(settings, reserve_seconds=seconds)


def test_loops_begin_at_their_share_of_progress() -> None:
    settings = replace(TIMED, loop_start_fraction=0.5)
    assert [loops_on_at(clock, settings) for clock in (Clock(0, 0.0), Clock(400, 29.9), Clock(3, 30.0))] == [
        False,
        False,
        True,
    ]
    assert loops_on_at(Clock(0, 0.0), replace(TIMED, loop_start_fraction=0.0))


def test_the_context_grows_at_its_shares_of_progress_and_each_graph_is_known_before() -> None:
    data = DataSettings(
        batch_tokens=4096, sequence_length=2048, context_lengths=(512, 1024), context_ends=(0.1, 0.7)
    )
    clocks = [Clock(0, 0.0), Clock(99, 5.9), Clock(100, 0.0), Clock(0, 41.9), Clock(0, 42.0), Clock(999, 0.0)]
    assert [context_at(clock, TIMED, data) for clock in clocks] == [512, 512, 1024, 1024, 2048, 2048]
    assert context_at(Clock(0, 0.0), TIMED, replace(data, context_lengths=(), context_ends=())) == 2048
    schedule = replace(TIMED, loop_start_fraction=0.35)
    plain = TrainSettings(schedule=schedule, data=data)
    assert [context for _, context in graphs_from(0.0, plain)] == [512, 1024, 2048]
    looped = replace(plain, model=replace(plain.model, loop_passes=2))
    assert graphs_from(0.0, looped) == [(False, 512), (False, 1024), (True, 1024), (True, 2048)]
    assert graphs_from(0.7, looped) == [(True, 2048)]
    assert graphs_from(0.69, looped) == [(True, 1024), (True, 2048)]
    throughout = replace(looped, schedule=replace(schedule, loop_start_fraction=0.0), data=DataSettings())
    assert graphs_from(0.0, throughout) == [(True, 2048)]


@pytest.mark.parametrize(
    ("lengths", "ends", "message"),
    [
        ((512,), (), r"context_lengths = \[512\] and context_ends = \[\]: give one end for each length"),
        ((1024, 512), (0.1, 0.2), r"context_lengths = \[1024, 512\]: each must be larger"),
        ((512, 1024), (0.2, 0.2), r"context_ends = \[0.2, 0.2\]: each must be larger"),
        ((512,), (1,), r"context_ends = \[1.0\]: the last must be below 1"),
        ((600,), (0.1,), "600 must divide sequence_length = 2048"),
        ((2048,), (0.1,), "2048 must divide sequence_length = 2048 and be smaller"),
    ],
)
def test_a_context_that_cannot_grow_is_refused(lengths: tuple, ends: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(context_lengths=lengths, context_ends=ends)


def test_learning_rate_is_constant_then_linear_to_zero() -> None:
    assert [lr_scale_at(Clock(step, 0.0), STEPS) for step in (0, 60, 80, 100)] == [
        1.0,
        1.0,
        pytest.approx(0.5),
        0.0,
    ]


def test_a_slower_machine_gets_the_same_schedule_over_the_same_time() -> None:
    fast, slow = Clock(400, 45.0), Clock(40, 45.0)
    assert lr_scale_at(fast, TIMED) == lr_scale_at(slow, TIMED) == pytest.approx(0.5)


def test_warmdown_in_steps_is_their_measured_length_of_wallclock_before_the_cap() -> None:
    settings = replace(TIMED, max_steps=20_000, warmdown_fraction=None, warmdown_steps=300)
    assert lr_scale_at(Clock(100, 10.0), settings) == 1.0  # 0.1 s a step: 30 s of warmdown begin at 30 s
    assert lr_scale_at(Clock(450, 45.0), settings) == pytest.approx(0.5)
    by_steps = ScheduleSettings(max_steps=100, warmdown_fraction=None, warmdown_steps=40)
    assert lr_scale_at(Clock(80, 1.0), by_steps) == pytest.approx(0.5)


def test_momentum_rises_linearly_over_its_warmup_in_progress_or_steps() -> None:
    by_progress = OptimizerSettings(
        muon_momentum_start=0.8, muon_momentum=0.9, muon_momentum_warmup_fraction=0.5
    )
    assert [momentum_at(Clock(step, 0.0), STEPS, by_progress) for step in (0, 25, 50, 90)] == pytest.approx(
        [0.8, 0.85, 0.9, 0.9]
    )
    by_steps = replace(by_progress, muon_momentum_warmup_fraction=None, muon_momentum_warmup_steps=10)
    assert momentum_at(Clock(5, 0.0), STEPS, by_steps) == pytest.approx(0.85)


def test_qat_is_on_below_its_lr_scale_and_never_at_zero() -> None:
    assert qat_on_at(0.09, QatSettings(start_lr_scale=0.1))
    assert not qat_on_at(0.1, QatSettings(start_lr_scale=0.1))
    assert not qat_on_at(0.0, QatSettings(start_lr_scale=0.0))


def test_snapshots_come_every_so_many_steps_inside_the_window_only() -> None:
    settings = SnapshotSettings(start_lr_scale=0.2, every_steps=2)
    taken = []
    for step in range(100):
        before, after = Clock(step, 0.0), Clock(step + 1, 0.0)
        if snapshot_due(before, after, lr_scale_at(before, STEPS), STEPS, settings):
            taken.append(after.steps)
    assert taken == [94, 96, 98, 100]


def test_snapshots_by_progress_are_evenly_spaced_in_time() -> None:
    settings = SnapshotSettings(start_lr_scale=1.0, every_steps=None, every_fraction=0.1)
    taken = [
        second
        for second in range(60)
        if snapshot_due(
            Clock(second, second),
            Clock(second + 1, second + 1.0),
            lr_scale_at(Clock(second, second), TIMED),
            TIMED,
            settings,
        )
    ]
    assert len(taken) == 5
    assert all(b - a == 6 for a, b in zip(taken, taken[1:], strict=False))


def test_the_learning_rate_falls_to_its_floor_and_stays_there() -> None:
    settings = replace(STEPS, min_lr_scale=0.1)
    before, after = lr_scale_at(Clock(80, 0.0), STEPS), lr_scale_at(Clock(80, 0.0), settings)
    assert before == after == pytest.approx(0.5)
    assert [lr_scale_at(Clock(step, 0.0), settings) for step in (97, 100)] == [0.1, 0.1]


def test_the_mean_of_all_steps_weighs_them_by_their_progress() -> None:
    """However finely a span of progress is cut into steps, what came before keeps exp(-span/horizon)."""
    for steps in (1, 4, 50):
        kept = 1.0
        for step in range(steps):
            before, after = Clock(0, 60 * step / steps / 2), Clock(0, 60 * (step + 1) / steps / 2)
            kept *= 1 - ema_share_at(before, after, TIMED, horizon=0.2)
        assert kept == pytest.approx(math.exp(-0.5 / 0.2))
