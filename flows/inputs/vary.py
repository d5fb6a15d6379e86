"""`--vary NAME=VALUES` -> what a sweep varies, checked before anything starts.

It imports neither Prefect nor torch nor Optuna.
"""

import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flows.inputs.specs import Plan, plan_from
from flows.inputs.starts import Start, start_of_preset
from schemas.errors import SpecError
from schemas.extras import require_package
from schemas.introspect import takes
from schemas.overrides import as_override, check_value
from schemas.pipeline import PipelineSpec
from schemas.sweep import Choices, ObjectiveName, Range, Variation

OBJECTIVES: tuple[ObjectiveName, ...] = ("val_bpb", "bytes")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*:\s*({_NUMBER})\s*(?::\s*(log|{_NUMBER})\s*)?")
_FORMS = "LOW:HIGH, LOW:HIGH:log, LOW:HIGH:STEP or VALUE,VALUE,…"
_MOST_COMBINATIONS_TRIED = 64

_FIXED = {
    "train.seed": "every trial has the same seed, and the test at the end takes the next ones",
    "evaluate": "it decides how models are scored, so scores of trials would not compare",
    "merge.scoring": "it decides how models are scored, so scores of trials would not compare",
    "tokenize.corpus": "it decides the validation text, so scores of trials would not compare",
    "tokenize.split": "it decides the validation text, so scores of trials would not compare",
    "check_size": "it changes no score and no byte",
    "audit": "it changes no score and no byte",
    "publish": "it changes no score and no byte",
}
"""Settings and sections that do not vary, and why."""

_TARGET: dict[str, Callable[[PipelineSpec], object]] = {
    "train.compute.device": lambda spec: spec.train.compute.device,
    "train.compute.num_processes": lambda spec: spec.train.compute.num_processes,
    "train.compute.num_nodes": lambda spec: spec.train.compute.num_nodes,
    "train.schedule.max_steps": lambda spec: spec.train.schedule.max_steps,
    "train.schedule.max_seconds": lambda spec: spec.train.schedule.max_seconds,
    "train.data.batch_tokens": lambda spec: spec.train.data.batch_tokens,
}
"""Settings on which the best values of others depend."""


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep does: the start of its runs, what it varies, and what it minimizes."""

    start: Start
    overrides: tuple[str, ...]
    variations: tuple[Variation, ...]
    objectives: tuple[ObjectiveName, ...]
    warnings: tuple[str, ...]

    def base(self) -> Plan:
        """The run without any variation."""
        return plan_from(self.start, self.overrides)

    def base_values(self) -> tuple[str, ...]:
        """What the base has, for each variation, as text."""
        tree = self.base().spec.model_dump(mode="json")
        return tuple(_value_in(tree, variation.settings[0]) for variation in self.variations)

    def with_values(self, values: Sequence[str]) -> Plan:
        """The run of a trial. Raises SpecError for values that do not go together."""
        return plan_from(self.start, (*self.overrides, *assignments(self.variations, values)))


def plan_sweep(
    preset: str, overrides: Sequence[str], vary: Sequence[str], objective: str, confirm_seeds: int = 0
) -> SweepPlan:
    """The plan of a sweep.

    Raises SpecError where Optuna is missing, for an unknown setting with the nearest one, for a value
    outside of the setting's range, where none of the combinations tried is a run, and for one seed, of which
    no test can be made.
    """
    require_optuna()
    if confirm_seeds == 1:
        raise SpecError("confirm_seeds = 1: a test needs 2 or more; 0 makes none")
    start, given = start_of_preset(preset), tuple(overrides)
    base = plan_from(start, given)
    if not vary:
        raise SpecError("vary: names no setting. Give one, for example train.optimizer.muon_lr=0.01:0.05:log")
    variations = tuple(parse_variation(base.spec, text) for text in vary)
    _refuse_twice(variations, given)
    plan = SweepPlan(
        start,
        given,
        variations,
        parse_objectives(objective),
        tuple(_off_target(preset, start.spec, base.spec)),
    )
    _refuse_impossible(plan)
    return plan


def require_optuna() -> None:
    """Raises SpecError, with the command that installs it, where Optuna is missing."""
    require_package("optuna", "sweep")


def parse_objectives(text: str) -> tuple[ObjectiveName, ...]:
    """`val_bpb,bytes` -> both. Raises SpecError for anything else."""
    names = [name.strip() for name in text.split(",")]
    found = tuple(name for name in OBJECTIVES if name in names)
    if len(found) != len(names):
        raise SpecError(f"objective = {text}: there are val_bpb (bits per byte), bytes, and val_bpb,bytes")
    return found


def parse_variation(spec: PipelineSpec, text: str) -> Variation:
    """`train.model.num_layers=4,6,8` -> what varies. `a+b=…` gives both settings the same value.

    Raises SpecError that names setting, value and remedy.
    """
    named, equals, values = text.partition("=")
    names = tuple(name.strip() for name in named.split("+"))
    if not equals or not all(names):
        raise SpecError(f"vary = {text}: write NAME=VALUES; VALUES are {_FORMS}")
    for name in names:
        for fixed, why in _FIXED.items():
            if f"{name}.".startswith(f"{fixed}."):
                raise SpecError(f"vary = {name}: cannot vary, because {why}")
    try:
        return _range(spec, names, values) or _choices(spec, names, values)
    except SpecError as error:
        raise SpecError(f"vary: {error}") from error


def assignments(variations: Sequence[Variation], values: Sequence[str]) -> tuple[str, ...]:
    """The values, one for each variation, as dotted.name=value."""
    pairs = zip(variations, values, strict=True)
    return tuple(setting for variation, value in pairs for setting in variation.overrides(value))


def _range(spec: PipelineSpec, names: tuple[str, ...], text: str) -> Range | None:
    """None for a text that is no range."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    children = [check_value(spec, name, match[end]) for name in names for end in (1, 2)]
    if not all(takes(child.hint, float) or takes(child.hint, int) for child in children):
        raise SpecError(f"{names[0]} = {text}: has no range of numbers. List its values: VALUE,VALUE,…")
    low, high, third = float(match[1]), float(match[2]), match[3]
    whole = not all(takes(child.hint, float) for child in children)
    step = float(third) if third and third != "log" else None
    problem = ""
    if not math.isfinite(high) or not low < high:
        problem = "the first number must be below the second one"
    elif third == "log" and low <= 0:
        problem = "a logarithmic scale begins above 0"
    elif step is not None and not 0 < step <= high - low:
        problem = "the step must be above 0 and at most the whole range"
    elif whole and step is not None and not step.is_integer():
        problem = "the setting takes integers, so the step must be one"
    if problem:
        raise SpecError(f"{names[0]} = {text}: {problem}. Write {_FORMS}")
    return Range(settings=names, low=low, high=high, step=step, log=third == "log", whole=whole)


def _choices(spec: PipelineSpec, names: tuple[str, ...], text: str) -> Choices:
    values = tuple(dict.fromkeys(_listed(text)))
    try:
        for name in names:
            for value in values:
                check_value(spec, name, value)
    except SpecError as error:
        raise SpecError(f"{error}. Write {_FORMS}" if ":" in text else str(error)) from error
    if len(values) < 2:
        raise SpecError(
            f"{names[0]} = {text}: needs two values or more. Write {_FORMS}; for one value use --set"
        )
    return Choices(settings=names, values=values)


def _listed(text: str) -> list[str]:
    """The values between commas; a list in brackets is one value."""
    try:
        return [value if isinstance(value, str) else json.dumps(value) for value in json.loads(f"[{text}]")]
    except ValueError:
        return [value.strip() for value in text.split(",") if value.strip()]


def _refuse_twice(variations: Sequence[Variation], overrides: Sequence[str]) -> None:
    seen = {override.partition("=")[0].strip(): "is set as well; leave one out" for override in overrides}
    for variation in variations:
        for name in variation.settings:
            if name in seen:
                raise SpecError(f"vary = {name}: {seen[name]}")
            seen[name] = "varies twice; leave one out"


def _refuse_impossible(plan: SweepPlan) -> None:
    """Raises SpecError, with the first reason, where no combination of ends and listed values is a run."""
    ends = [variation.ends() for variation in plan.variations]
    choose = random.Random(0).choice
    tried: Iterable[Sequence[str]] = (
        itertools.product(*ends)
        if math.prod(map(len, ends)) <= _MOST_COMBINATIONS_TRIED
        else ([choose(values) for values in ends] for _ in range(_MOST_COMBINATIONS_TRIED))
    )
    reasons = []
    for values in tried:
        try:
            plan.with_values(values)
            return
        except SpecError as error:
            reasons.append(f"{', '.join(assignments(plan.variations, values))}: {error}")
    raise SpecError(
        f"vary: no combination of these values is a run. The first of {len(reasons)} says {reasons[0]}"
    )


def _off_target(preset: str, target: PipelineSpec, base: PipelineSpec) -> Iterator[str]:
    """A warning where the runs of the sweep are of another scale than those of the preset."""
    differing = [
        f"{name} is {_value(find(base))}, {preset} has {_value(find(target))}"
        for name, find in _TARGET.items()
        if find(base) != find(target)
    ]
    if differing:
        yield (
            f"{'; '.join(differing)}. The best learning rates, decays and schedules depend on devices, "
            f"batch and steps, so what wins here may lose in {preset}"
        )


def _value_in(tree: Any, dotted: str) -> str:
    for name in dotted.split("."):
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    return as_override("", tree).removeprefix("=")


def _value(value: object) -> str:
    return "none" if value is None else str(value)
