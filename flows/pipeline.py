"""From text to a scored artifact: the whole chain as one Prefect flow.

    fairway run --preset demo          or          from flows.pipeline import pipeline; pipeline("demo")

A stage whose result is in the store already shows as `Cached` and is not run.
"""

import time
from datetime import UTC, datetime

from prefect import flow
from prefect.runtime import flow_run

from flows.reporting import over_limit_message, pipeline_report, publish_artifacts, publish_spec
from flows.runs import save_report
from flows.specs import resolve, run_label
from flows.tasks import stage_runner
from schemas.errors import SpecError, StageError
from schemas.pipeline import PipelineReport
from schemas.runtime import RunOptions
from stages.corpora import locate
from stages.runner import Outcome
from stages.store import Store


def _run_name() -> str:
    given = flow_run.parameters
    try:
        return run_label(given["preset"], resolve(given["preset"], given["overrides"] or []))
    except SpecError:
        return f"{given['preset']}-refused"  # the flow itself says why


@flow(name="pipeline", flow_run_name=_run_name, persist_result=False)
def pipeline(preset: str = "demo", overrides: list[str] | None = None, options: RunOptions | None = None) -> PipelineReport:
    """Text in, a scored, quantized and size-checked artifact out.

    Args:
        preset: smoke, demo, record or reference; `fairway describe PRESET` shows what is in it.
        overrides: Settings that differ from the preset, each as dotted.name=value.
        options: Where and how the stages run; never changes a result.
    """
    started, created_at = time.perf_counter(), datetime.now(UTC)
    spec, options = resolve(preset, overrides or []), options or RunOptions()
    store, label = Store(options.store), run_label(preset, spec)
    outcomes: list[Outcome] = []
    run = stage_runner(options, label, outcomes)

    manifest = locate(spec.tokenize, store.hashes)
    tokenized = run("tokenize_corpus", spec.tokenize, manifest=manifest)
    trained = run("train", spec.train, tokenized=tokenized)
    merged = run("merge", spec.merge, trained=trained, tokenized=tokenized)
    packed = run("quantize", spec.quantize, merged=merged)
    package = run("package", spec.package, packed=packed)
    size = run("check_size", spec.check_size, package=package, packed=packed)
    evaluation = run("evaluate", spec.evaluate, package=package, tokenized=tokenized)
    results = {
        "tokenized": tokenized,
        "trained": trained,
        "merged": merged,
        "packed": packed,
        "package": package,
        "size": size,
        "evaluation": evaluation,
    }
    published = run("publish", publish_spec(spec, label, outcomes), **results)

    report = pipeline_report(str(flow_run.id), label, preset, spec, created_at, time.perf_counter() - started, outcomes, results, published)
    save_report(store.root, report)
    publish_artifacts(report, store.root)
    if not size.fits:
        raise StageError(over_limit_message(size))
    return report
