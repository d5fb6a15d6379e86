"""Train the next seeds of one configuration, keep their figures in a ledger, and say what all seeds
together show.

    fairway validate-seeds --preset demo --mark 2.90          trains the next seed

A weekly schedule does the same.

Every seed is a run of the pipeline of its own. A failed one is kept as failed, and the next run retries
it.
"""

import logging
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.inputs.form import Assignment, Options, Preset, number_field, with_empty_fields
from flows.inputs.parameters import checked_by
from flows.inputs.specs import Plan, as_overrides, plan_run
from flows.pipeline import check_run, pipeline
from flows.results.endings import reason
from flows.results.seeds import conclusions, mark_line, publish_seeds, seed_figures
from flows.tasks.run_end import set_labels, tell_end
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stream_logs
from flows.tasks.tries import begin_try
from presets import load_preset
from schemas.base import fingerprint
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError, StageError
from schemas.pipeline import PipelineSpec
from schemas.runtime import RunOptions
from schemas.seeds import Ledger, SeedEntry, SeedFigures
from schemas.stages import STAGES
from stages.seeds.ledger import (
    find_ledger,
    ledger_files,
    open_locked,
    read_ledger,
    refuse_other_plan,
    write_ledger,
)
from stages.store.machine import machine_kind, precision_note
from stages.store.runs import load_report
from stages.store.source import code_digest
from stages.store.store import Store, open_store

log = logging.getLogger(__name__)


def _run_name() -> str:
    given = flow_run.parameters
    seed = given["recheck_seed"]
    return f"{given['ledger'] or given['preset']}-{'seeds' if seed is None else f'recheck-seed{seed}'}"


def _check(given: Mapping[str, Any], options: RunOptions, store: Store) -> None:
    """Of the seeds to train, the first stands for all; the ledger is as it lies in the store. Where none is
    to be trained, neither text nor GPU is needed.
    """
    plan = plan_run(given["preset"], given["overrides"])
    _refuse_seed(plan)
    if given["against"]:
        find_ledger(store.runs_root(), given["against"])
    name = given["ledger"] or given["preset"]
    book = wanted = _wanted_ledger(plan, name, given["first_seed"], given["max_seeds"])
    paths = {path.parent.name: path for path in ledger_files(store.runs_root())}
    if wanted.label in paths:
        book = read_ledger(paths[wanted.label])
        refuse_other_plan(book, wanted)
    seeds = book.next_seeds(given["new_seeds_per_run"])
    if (again := given["recheck_seed"]) is not None:
        _to_recheck(book, again, plan.spec.train.compute)
        seeds = [again]
    if seeds:
        check_run(plan.with_seed(seeds[0]), options, store)


def _wanted_ledger(plan: Plan, name: str, first_seed: int, max_seeds: int) -> Ledger:
    """The ledger of this name for the plan's configuration, with no seed in it yet."""
    # Seed 0, so that the seed counts for nothing in the configuration's fingerprint.
    configuration = fingerprint(plan.with_seed(0).spec)
    return Ledger(name=name, configuration=configuration, first_seed=first_seed, max_seeds=max_seeds)


@checked_by(_check)
@with_empty_fields
@flow(
    name="seed-validation",
    flow_run_name=_run_name,
    persist_result=False,
    on_completion=[tell_end],
    on_failure=[tell_end],
)
def seed_validation(
    preset: Preset = "demo",
    overrides: tuple[Assignment, ...] = (),
    ledger: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9._-]*)?$")] = "",
    new_seeds_per_run: Annotated[int, Field(ge=0, le=100)] = 1,
    max_seeds: Annotated[int, Field(ge=2, le=1000)] = 10,
    first_seed: Annotated[int, Field(ge=0)] = 1,
    mark_nats: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False), number_field("number", exclusiveMinimum=0)
    ] = None,
    against: str = "",
    margin_nats: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.005,
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01,
    recheck_seed: Annotated[int | None, Field(ge=0), number_field("integer", minimum=0)] = None,
    options: Options = None,
) -> tuple[Ledger, list[str]]:
    """Train the next seeds of a configuration and say what all of them together show.

    Args:
        preset: What to start from: smoke (seconds), demo and medium (minutes on two cores), record and
            reference (eight GPUs).
        overrides: Settings that differ from the preset, one an entry, as dotted.name=value; not the seed.
        ledger: Name of the ledger, in small letters. Empty: the preset's. Each configuration has its own
            ledger under the name.
        new_seeds_per_run: New seeds that this run trains, 0 to 100; failed ones are tried again besides.
        max_seeds: Seeds at most, 2 to 1000. Declared before the first one and then fixed: a plan changed
            after looking spoils the test.
        first_seed: The first seed; the next ones follow it.
        mark_nats: The loss to beat, in nats a token (not bits per byte). Empty: no mark.
        against: A ledger to beat instead of a mark, by the beginning of its name.
        margin_nats: Nats a token by which the mark has to be beaten, 0 or more.
        alpha: The p below which it counts as beaten, between 0 and 1.
        recheck_seed: Train this seed again instead of new ones, on the CPU with nothing cached; other figures
            fail the run.
        options: Where and how the stages run; never changes a result.
    """
    stream_logs()
    options = begin_try(options)
    store = open_store(options)
    plan = plan_run(preset, overrides)
    overrides = overrides if preset == plan.preset else as_overrides(plan)
    _refuse_seed(plan)
    wanted = _wanted_ledger(plan, ledger or preset, first_seed, max_seeds)
    other = find_ledger(store.runs_root(), against) if against else None
    with open_locked(store.root, wanted) as book:
        book = store.share_ledger(book)
        _name_others(store.runs_root(), book, plan.spec)
        if recheck_seed is None:
            book = _train_next(store, book, new_seeds_per_run, plan, overrides, options)
        else:
            book = store.share_ledger(_recheck(book, recheck_seed, plan, overrides, options))
    said = conclusions(book, other, mark_nats, margin_nats, alpha)
    with only_shown("what the seeds show"):
        publish_seeds(book, said, mark_line(other, mark_nats, margin_nats))
    set_labels(result=" ".join(said))
    _refuse_failed(book)
    return book, said


def _train_next(
    store: Store, book: Ledger, new: int, plan: Plan, overrides: tuple[str, ...], options: RunOptions
) -> Ledger:
    """The ledger after a run of each failed seed and of `new` new ones; after each it is shared."""
    for seed in book.next_seeds(new):
        entry = _train(book, plan.with_seed(seed), overrides, options)
        book = store.share_ledger(book.with_entry(entry))
        write_ledger(store.root, book)
    return book


def _refuse_failed(book: Ledger) -> None:
    """Raises StageError, which names the seeds that failed and why."""
    failed = [f"seed {entry.seed}: {entry.error}" for entry in book.entries if entry.status == "failed"]
    if failed:
        raise StageError("\n".join(["these seeds failed; the next run tries them again", *failed]))


def _refuse_seed(plan: Plan) -> None:
    seed = plan.spec.train.seed
    if seed != load_preset(plan.preset).train.seed:
        raise SpecError(f"train.seed = {seed}: the seed is what this flow varies; use first_seed")


def _name_others(store: Path, book: Ledger, spec: PipelineSpec) -> None:
    """Say of a new ledger which ones of its name there are already: another machine's `auto` may have
    begun one.
    """
    labels = [path.parent.name for path in ledger_files(store)]
    others = [label for label in labels if label.rpartition("-")[0] == book.name and label != book.label]
    if not book.entries and others:
        log.warning(
            "ledger %s is new. Of its name there are %s, of other settings; where only the machine is "
            "another, the precision differs: here it is %s",
            book.label,
            ", ".join(others),
            precision_note(spec.train.compute),
        )


def _train(book: Ledger, plan: Plan, overrides: tuple[str, ...], options: RunOptions) -> SeedEntry:
    """The entry of the plan's seed after a run of the pipeline; a run that failed gives a failed entry."""
    seed = plan.spec.train.seed
    log.info(
        "ledger %s: seed %d (%d of at most %d are done)",
        book.label,
        seed,
        len(book.completed()),
        book.max_seeds,
    )
    changes = (*overrides, f"train.seed={seed}")
    state = pipeline(plan.preset, overrides=changes, options=options, return_state=True)
    run_id, before = str(state.state_details.flow_run_id), book.entry(seed)
    report = load_report(Path(options.store), run_id)
    return SeedEntry(
        seed=seed,
        status="completed" if state.is_completed() else "failed",
        run_id=run_id,
        run_name=plan.label,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_sha256=_code(),
        machine=machine_kind(plan.spec.train.compute),
        tries=before.tries + 1 if before else 1,
        error="" if state.is_completed() else (reason(state.message) or state.name or ""),
        figures=seed_figures(report) if report else None,
    )


def _recheck(book: Ledger, seed: int, plan: Plan, overrides: tuple[str, ...], options: RunOptions) -> Ledger:
    """Compute a completed seed again where nothing is cached.

    Raises StageError when it gives other figures.
    """
    entry = _to_recheck(book, seed, plan.spec.train.compute)
    scratch = Path(options.store) / "recheck" / f"{book.label}-seed{seed}"
    shutil.rmtree(scratch, ignore_errors=True)
    again = _train(book, plan.with_seed(seed), overrides, options.derive(store=str(scratch), remote=None))
    if again.status == "failed":
        raise StageError(f"recheck of seed {seed}: {again.error}")
    if again.figures != entry.figures:
        raise StageError(
            f"seed {seed} of ledger {book.label} is not reproducible {_differences(entry, again)}. Its "
            f"new results lie in {scratch}"
        )
    shutil.rmtree(scratch)
    log.info("ledger %s: seed %d gave the same figures again, to the last bit", book.label, seed)
    checked = book.with_entry(entry.derive(rechecked_at=again.created_at))
    write_ledger(Path(options.store), checked)
    return checked


def _to_recheck(book: Ledger, seed: int, compute: ComputeSettings) -> SeedEntry:
    """The entry of `seed`. Raises SpecError where this machine cannot promise to repeat it."""
    entry = book.entry(seed)
    if entry is None or entry.status != "completed":
        done = ", ".join(str(item.seed) for item in book.completed()) or "none"
        raise SpecError(
            f"recheck_seed = {seed}: not a completed seed of ledger {book.label}; completed: {done}"
        )
    if compute.device != "cpu":
        raise SpecError(
            f"recheck_seed = {seed}: equal figures are promised on the CPU only; this configuration "
            f"trains on {compute.device}"
        )
    if entry.machine and entry.machine != (here := machine_kind(compute)):
        raise SpecError(
            f"recheck_seed = {seed}: was trained on another kind of machine ({entry.machine}) than this one "
            f"({here}). Equal figures are promised on one kind only: check it again on such a machine, or "
            "train its seed here in a ledger of another name"
        )
    return entry


def _differences(before: SeedEntry, now: SeedEntry) -> str:
    """What two trainings of one seed gave that is not equal, and whether their code is: in words."""
    figures = [entry.figures.model_dump() if entry.figures else {} for entry in (before, now)]
    unequal = "; ".join(
        f"{name} was {figures[0].get(name)}, is {figures[1].get(name)}"
        for name in SeedFigures.model_fields
        if figures[0].get(name) != figures[1].get(name)
    )
    same_code = now.code_sha256 == before.code_sha256
    code = "the same code" if same_code else f"code {before.code_sha256[:12]}, now {now.code_sha256[:12]}"
    return f"({code}): {unequal}"


def _code() -> str:
    """Digest of the code that decides figures: of every stage but the two that only look at results."""
    return code_digest(
        sorted(
            {
                root
                for stage in STAGES.values()
                if stage.name not in ("audit", "publish")
                for root in stage.code_roots
            }
        )
    )
