"""Seconds by earlier runs: scaled by the work, only from the same kind of machine and manner."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from presets import PRESETS
from schemas.pipeline import PipelineSpec
from stages.planning.job import ModelProbe, Probed, StepProbe
from stages.planning.seconds import by_earlier_results, by_probe
from stages.planning.work import TextSize, Work, work_of
from stages.store.machine import resolve_precision, this_machine

SIZE = TextSize(12_000_000, 3_985_900, 143_579)


@pytest.fixture(scope="module")
def demo() -> PipelineSpec:
    spec: PipelineSpec = resolve_precision(PRESETS["demo"]().with_qat_grid())
    return spec


def _trained(spec: PipelineSpec, **changes: Any) -> Any:
    """The parts of a record of training that count: 100 s, of which 92 in the loop."""
    machine = this_machine(spec.train.compute).derive(**changes)
    provenance = SimpleNamespace(key="0123456789abcdef", seconds=100.0, machine=machine)
    result = SimpleNamespace(timings=SimpleNamespace(training_seconds=92.0))
    return SimpleNamespace(provenance=provenance, spec=spec.train, result=result)


def _longer(spec: PipelineSpec, **schedule: Any) -> PipelineSpec:
    train = replace(spec.train, schedule=replace(spec.train.schedule, **schedule))
    return spec.derive(train=train)


def _estimate(spec: PipelineSpec, *records: Any, of: PipelineSpec | None = None) -> Any:
    earlier = [(record, work_of("train", of or spec, SIZE)) for record in records]
    machine = this_machine(spec.train.compute)
    return by_earlier_results("train", spec.train, machine, work_of("train", spec, SIZE), earlier)


def test_the_same_training_takes_as_long_again(demo: PipelineSpec) -> None:
    found = _estimate(demo, _trained(demo))
    assert (found.seconds, found.source, found.share) == (100.0, "earlier run", 1.0)
    assert found.details == "0123456789ab took 100.0 s"


def test_twice_the_steps_double_the_loop_and_not_the_start(demo: PipelineSpec) -> None:
    found = _estimate(_longer(demo, max_steps=880), _trained(demo), of=demo)
    assert found.seconds == pytest.approx(8 + 2 * 92)
    assert "0.5 times the work" in found.details


def test_a_cap_of_seconds_ends_training_early(demo: PipelineSpec) -> None:
    found = _estimate(_longer(demo, max_steps=880, max_seconds=46.0), _trained(demo), of=demo)
    assert found.seconds == pytest.approx(8 + 46)
    assert found.share == pytest.approx(0.25)  # a quarter of the 880 steps


def test_work_of_another_size_is_called_rough(demo: PipelineSpec) -> None:
    assert "rough" in _estimate(_longer(demo, max_steps=44_000), _trained(demo), of=demo).details


def test_another_machine_or_another_number_of_threads_does_not_compare(demo: PipelineSpec) -> None:
    assert _estimate(demo, _trained(demo, cpu="another CPU")) is None
    compute = replace(demo.train.compute, threads_per_process=7)
    other = _trained(demo)
    other.spec = replace(other.spec, compute=compute)
    assert _estimate(demo, other) is None


def test_the_nearest_work_counts_and_of_equals_the_newest(demo: PipelineSpec) -> None:
    newest, older = _trained(demo), _trained(demo)
    older.provenance.seconds = 200.0
    assert _estimate(demo, newest, older).seconds == 100.0
    machine, asked = this_machine(demo.train.compute), work_of("train", demo, SIZE)
    far = [(newest, Work(asked.amount / 3)), (older, asked)]
    assert by_earlier_results("train", demo.train, machine, asked, far).seconds == 200.0  # type: ignore[union-attr]


def test_a_probe_is_multiplied_by_steps_windows_and_tokens(demo: PipelineSpec) -> None:
    steps = StepProbe(
        inside_seconds=9.0,
        warmup_seconds=0.0,
        steps=20,
        step_seconds=0.2,
        peak_bytes=1,
        window_seconds=0.01,
        sliding_window_seconds=0.005,
    )
    model = ModelProbe(inside_seconds=1.0, quantize_seconds=0.5, token_seconds=1e-5, peak_bytes=1)
    probed = Probed(start_seconds=4.0, steps=steps, model=model)

    def seconds(stage: str) -> float | None:
        found = by_probe(stage, demo, SIZE, probed)
        return None if found is None else found.seconds

    assert seconds("train") == pytest.approx(4 + 440 * 0.2)
    assert seconds("merge") == pytest.approx(4 + 2 * 561 * 0.01)
    assert seconds("evaluate") == pytest.approx(4 + 561 * 0.01 + 2241 * 0.005)
    assert seconds("quantize") == pytest.approx(0.5)
    assert seconds("publish") is None
    elsewhere = demo.derive(merge=demo.merge.derive(compute=replace(demo.merge.compute, num_processes=2)))
    assert by_probe("merge", elsewhere, SIZE, probed) is None
