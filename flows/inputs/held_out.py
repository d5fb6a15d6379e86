"""Run options about held-out text -> what the training gets: shares, windows, rules, the other run's curve.

It imports neither Prefect nor torch.
"""

from dataclasses import dataclass

from schemas.base import fingerprint
from schemas.errors import SpecError
from schemas.held_out import (
    DEFAULT_EVERY,
    Behind,
    CurvePoint,
    HeldOut,
    parse_behind,
    parse_rules,
    parse_share,
)
from schemas.pipeline import PipelineReport, PipelineSpec
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import TokenizedCorpus
from stages.store.runs import find_run
from stages.store.store import Store
from stages.training.metrics import HELD_OUT_COLUMNS, curve_of, read_metrics, scored_text_of


@dataclass(frozen=True)
class HeldOutPlan:
    """What the options ask of a run's training, found before its first stage."""

    asked: HeldOut
    other: PipelineReport | None

    def options(self, options: RunOptions, tokenized: TokenizedCorpus) -> RunOptions:
        """The options for the stage `train`.

        Raises SpecError where the other run was scored on another validation text.
        """
        other = self.other
        if other is not None and fingerprint(other.tokenized.val_shards) != fingerprint(tokenized.val_shards):
            raise SpecError(
                f"stop_behind = {options.stop_behind}: {other.name} was scored on another validation text, "
                "so the bits per byte do not compare. Name a run with the same tokenize settings"
            )
        return options.derive(held_out=self.asked)


def plan_held_out(options: RunOptions, spec: PipelineSpec, store: Store) -> HeldOutPlan | None:
    """None where the options ask for no score.

    A rule without `validate_every` is given one score each DEFAULT_EVERY. Raises SpecError where the run that
    `stop_behind` names is not found, or has no scores that compare.
    """
    if not (options.validate_every or options.stop_if or options.stop_behind):
        return None
    asked = HeldOut(
        every=parse_share(options.validate_every or DEFAULT_EVERY),
        tokens=options.validate_tokens,
        scoring=spec.merge.scoring,
        rules=parse_rules(options.stop_if) if options.stop_if else (),
    )
    if not options.stop_behind:
        return HeldOutPlan(asked, None)
    name, margin = parse_behind(options.stop_behind)
    try:
        other = find_run(store.runs_root(), name)
    except SpecError as error:
        raise SpecError(f"stop_behind = {options.stop_behind}: {error}") from error
    curve = _curve_of(other, asked, store, options.stop_behind)
    return HeldOutPlan(asked.derive(behind=Behind(run=other.name, margin=margin, curve=curve)), other)


def _curve_of(other: PipelineReport, asked: HeldOut, store: Store, option: str) -> tuple[CurvePoint, ...]:
    if problem := next(store.problems(other.trained.metrics), None):
        raise SpecError(f"stop_behind = {option}: {problem}. Run its settings again")
    path = store.fetch(other.trained.metrics)
    curve = curve_of(read_metrics(path, ("step", "seconds", *HELD_OUT_COLUMNS)), other.spec.train.schedule)
    if not curve:
        raise SpecError(
            f"stop_behind = {option}: {other.name} was trained without held-out scores. Train its settings "
            "with --validate-every in another store (--store): a stored training does not run again"
        )
    if (theirs := scored_text_of(path)) != (ours := asked.scored_text()):
        raise SpecError(
            f"stop_behind = {option}: {other.name} was scored with {_words(theirs or {})}, this run is with "
            f"{_words(ours)}. Set --validate-tokens and merge.scoring alike"
        )
    return curve


def _words(scored: dict[str, int | str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in scored.items()) or "unknown windows"
