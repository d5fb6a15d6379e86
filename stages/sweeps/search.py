"""Trials of one sweep: Optuna suggests values, and a journal in the store keeps every outcome.

    with open_search(folder, settings) as search:
        while (asked := search.ask(trials)) is not None:
            search.tell(asked, outcome)

A suggestion depends on the seed and on the outcomes so far, never on when the process was started. Each trial
has a sampler of its own, seeded by the sweep's seed and the number of outcomes. A killed process leaves a
trial without outcome; the next one asks for the same trial again.
"""

import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from schemas.errors import SpecError, first_line
from schemas.held_out import CurvePoint
from schemas.sweep import Choices, ObjectiveName, SweepTrial, Variation
from stages.processes.locks import waiting_lock

JOURNAL_NAME = "journal.jsonl"
POPULATION = 8
"""Of NSGA-II; Optuna's 50 would make all trials of a small sweep random ones."""
_STUDY, _OUTCOME, _CURVE = "sweep", "outcome", "curve"
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_FINISHED = tuple(_STATES.values())
_SHARE_UNITS = 10_000
"""Of a whole run: Optuna counts steps in integers."""


@dataclass(frozen=True)
class SearchSettings:
    """What the suggestions follow from, besides the outcomes."""

    label: str
    variations: tuple[Variation, ...]
    objectives: tuple[ObjectiveName, ...]
    seed: int


@dataclass(frozen=True)
class Asked:
    """A trial without outcome: its number and a value for each variation, as text."""

    number: int
    values: tuple[str, ...]
    trial: optuna.trial.Trial


@contextmanager
def open_search(folder: Path, settings: SearchSettings) -> Iterator["Search"]:
    """The search whose journal lies in `folder`; only one process at a time has it.

    Raises SpecError for a journal that cannot be read, and StageError when a stop is asked for meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder / "lock", f"sweep {settings.label}", "which runs its trials"):
        yield Search(folder / JOURNAL_NAME, settings)


class Search:
    """The trials so far, and the next one. Made by `open_search`, which holds the lock."""

    def __init__(self, journal: Path, settings: SearchSettings) -> None:
        self.settings = settings
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            _repair(journal)
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal)))),
                study_name=_STUDY,
                directions=["minimize"] * len(settings.objectives),
                load_if_exists=True,
            )
            self.trials()
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"{journal}: damaged or of another version ({first_line(error)}). Remove it: the results of "
                "its trials stay stored, so that the same sweep trains none of them again"
            ) from error

    def trials(self) -> list[SweepTrial]:
        """Every trial with an outcome, in their order."""
        return [SweepTrial.model_validate(trial.user_attrs[_OUTCOME]) for trial in self._finished()]

    def curves(self) -> list[tuple[CurvePoint, ...]]:
        """The held-out scores of every complete trial; empty for one without."""
        return [
            tuple(CurvePoint.model_validate(point) for point in trial.user_attrs.get(_CURVE, ()))
            for trial in self._finished()
            if trial.state == TrialState.COMPLETE
        ]

    def front(self) -> tuple[int, ...]:
        """Numbers of the complete trials that no other beats in every objective."""
        return tuple(sorted(trial.number for trial in self._study.best_trials))

    def planned(self, trials: int) -> int:
        """How many trials there will be: `trials`, or one for each combination if those are no more."""
        return min(trials, self._combinations())

    def ask(self, trials: int) -> Asked | None:
        """The next trial; None once there are as many as planned."""
        finished = self.trials()
        done = len(finished)
        if (combinations := self._combinations()) <= trials:
            if len({trial.values for trial in finished}) >= combinations:
                return None
            self._queue_all()
        elif done >= trials:
            return None
        self._study.sampler = self._sampler(done)
        left = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # As Study.ask makes one: what the killed process had suggested stays, the rest is suggested again.
        trial = optuna.trial.Trial(self._study, left[0]._trial_id) if left else self._study.ask()
        values = tuple(_suggest(trial, variation) for variation in self.settings.variations)
        return Asked(trial.number, values, trial)

    def known(self, values: tuple[str, ...]) -> SweepTrial | None:
        """The earlier trial with the same values, whose outcome a repetition would have."""
        return next((trial for trial in self.trials() if trial.values == values), None)

    def tell(self, asked: Asked, outcome: SweepTrial, curve: Sequence[CurvePoint] = ()) -> None:
        """Keep the outcome and the held-out scores of a trial."""
        asked.trial.set_user_attr(_OUTCOME, outcome.model_dump(mode="json"))
        if curve:
            asked.trial.set_user_attr(_CURVE, [point.model_dump(mode="json") for point in curve])
        if outcome.state == "complete":
            values = [outcome.figure(objective) for objective in self.settings.objectives]
            self._study.tell(asked.trial, values)
            return
        state = _STATES[outcome.state]
        if len(self.settings.objectives) > 1:
            state = TrialState.FAIL  # Optuna prunes with one objective only
        elif outcome.state == "pruned":
            for point in curve:
                asked.trial.report(point.val_bpb, round(point.share * _SHARE_UNITS))
        self._study.tell(asked.trial, state=state)

    def _finished(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=_FINISHED)

    def _sampler(self, done: int) -> BaseSampler:
        state = np.random.SeedSequence([self.settings.seed, done]).generate_state(1)
        seed = int(state[0])
        if len(self.settings.objectives) > 1:
            return NSGAIISampler(seed=seed, population_size=POPULATION)
        return TPESampler(seed=seed)

    def _combinations(self) -> int:
        """How many combinations of listed values there are; of ranges, more than anybody tries."""
        if not all(isinstance(variation, Choices) for variation in self.settings.variations):
            return sys.maxsize
        return math.prod(len(variation.ends()) for variation in self.settings.variations)

    def _queue_all(self) -> None:
        """Let every combination of listed values be a trial that none has been yet."""
        names = [variation.name for variation in self.settings.variations]
        for values in itertools.product(*(variation.ends() for variation in self.settings.variations)):
            self._study.enqueue_trial(dict(zip(names, values, strict=True)), skip_if_exists=True)


def _suggest(trial: optuna.trial.Trial, variation: Variation) -> str:
    if isinstance(variation, Choices):
        return str(trial.suggest_categorical(variation.name, variation.values))
    if variation.whole:
        step = int(variation.step or 1)
        low, high = int(variation.low), int(variation.high)
        return variation.text(trial.suggest_int(variation.name, low, high, step=step, log=variation.log))
    value = trial.suggest_float(
        variation.name, variation.low, variation.high, step=variation.step, log=variation.log
    )
    return variation.text(value)


def _repair(journal: Path) -> None:
    """Repair what a kill, a full disk or a power failure left: Optuna's lock, and half of the last line.

    Raises ValueError for a whole line that is no entry.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)  # ours is held; Optuna would wait 30 s
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    for line in content[:whole].splitlines():
        entry: Any = json.loads(line)
        if not isinstance(entry, dict):
            raise ValueError(f"{line[:40]!r} is no entry")
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)
