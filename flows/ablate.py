"""Train an earlier run's configuration without some of its techniques, with the same seeds, and give the
differences with intervals.

    fairway ablate last --off xsa,ve --seeds 3

Each seed of each variant is a run of the pipeline of its own. A seed does the same to the data order of all
variants, so the differences are taken seed by seed.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.inputs.ignored import without_ignored
from flows.inputs.parameters import checked_by
from flows.inputs.specs import plan_run, run_options, settings_between
from flows.pipeline import check_run, pipeline
from flows.results.ablation import Variant, ablation_rows, plan_variants
from flows.results.endings import reason
from flows.results.tables import Row
from flows.tasks.run_end import tell_end
from flows.tasks.showing import only_shown
from flows.tasks.stage_task import stream_logs
from flows.tasks.tries import begin_try
from presets import load_preset
from schemas.errors import StageError
from schemas.pipeline import PipelineReport
from schemas.runtime import RunOptions
from stages.store.runs import find_run, load_report, named_after
from stages.store.store import Store, open_store

log = logging.getLogger(__name__)


def _run_name() -> str:
    given = flow_run.parameters
    return named_after(open_store(run_options(given["options"])).runs_root(), given["run"], "ablated")


def _check(given: Mapping[str, Any], options: RunOptions, store: Store) -> None:
    earlier = find_run(store.runs_root(), given["run"])
    plan_variants(earlier.spec, given["off"])
    check_run(plan_run(earlier.preset, settings_between(earlier.preset, earlier.spec)), options, store)


@checked_by(_check)
@flow(
    name="ablate",
    flow_run_name=_run_name,
    persist_result=False,
    on_completion=[tell_end],
    on_failure=[tell_end],
)
def ablate(
    run: str, off: tuple[str, ...], num_seeds: int = 3, options: RunOptions | None = None
) -> tuple[list[Row], list[PipelineReport]]:
    """Train the configuration of `run` with and without each technique of `off`, and compare.

    Args:
        run: The earlier run: its name or id, the beginning of either, or "last" for the newest. Its seed is
            the first that is used.
        off: Techniques to leave out, a variant each; `xsa+ve` leaves both out of one variant, `all` stands
            for every one that is on.
        num_seeds: Seeds of each variant. One gives a difference without interval.
        options: Where and how the stages run; never changes a result. None: the store that FAIRWAY_STORE
            names, three retries.
    """
    stream_logs()
    options = begin_try(options)
    opened = open_store(options)
    store, earlier = opened.root, find_run(opened.runs_root(), run)
    plan = plan_variants(earlier.spec, off)
    base = settings_between(earlier.preset, earlier.spec)
    seeds = range(earlier.spec.train.seed, earlier.spec.train.seed + num_seeds)
    log.info("%s: %d variants × %d seeds, and as many of the run itself", earlier.name, len(plan), len(seeds))
    whole = Variant("the run itself", (), {})
    variants = [whole, *(Variant(name, changes, {}) for name, changes in plan)]
    for seed in seeds:
        for variant in variants:
            changes = (*base, *variant.changes, f"train.seed={seed}")
            # The run may have settings of a technique that this variant leaves out.
            changes = without_ignored(load_preset(earlier.preset), changes)
            state = pipeline(earlier.preset, overrides=changes, options=options, return_state=True)
            variant.reports[seed] = _outcome(state, store)
    rows = ablation_rows(variants)
    with only_shown("the table of the ablation"):
        described = f"{earlier.name} without each technique, {len(seeds)} seeds"
        create_table_artifact(key="ablation", table=rows, description=described)
    failed = [
        f"{item.name}, seed {seed}: {why}"
        for item in variants
        for seed, why in item.reports.items()
        if isinstance(why, str)
    ]
    if failed:
        raise StageError(
            "\n".join(["these runs failed; the same command tries them again and keeps the others", *failed])
        )
    return rows, [report for item in variants for report in item.completed().values()]


def _outcome(state: State[Any], store: Path) -> PipelineReport | str:
    report = load_report(store, str(state.state_details.flow_run_id))
    # A run over its limit leaves a report, and its score counts here.
    return report if report is not None else (reason(state.message) or state.name or "failed")
