"""Audit: what each technique that was switched on really did, and whether the rules hold, measured on
records and files.

    python -m stages audit --spec pipeline.json --input tokenized=…/record.json --input trained=…

`--help` names all inputs. The spec is the run's whole PipelineSpec. A technique without effect is a warning
and no error: the run keeps its figures.
"""

import logging

from schemas.audit import Audit
from schemas.pipeline import PipelineSpec
from schemas.results import RunResults
from stages.processes.launch import launch_module
from stages.store.workspace import Workspace

log = logging.getLogger(__name__)


def audit(spec: PipelineSpec, results: RunResults, work: Workspace) -> Audit:
    """The findings, the model's first.

    Raises StageError when the training metrics lack a column or hold no step.

    Measured in a process of its own, with the threads that the spec names, and which can be cancelled.
    """
    tokenized = results.tokenized
    measured = (results.trained.metrics, results.merged.weights, results.package.blob)
    for ref in (*tokenized.val_shards, tokenized.tokenizer, *measured):
        work.read(ref)  # damage is found here, where its error has a name
    job = {
        "spec": spec.model_dump(mode="json"),
        "results": results.model_dump(mode="json"),
        "root": str(work.root),
        "folder": str(work.out_dir),
        "runtime": work.runtime.model_dump(mode="json"),
    }
    timeout = work.runtime.stage_timeout_seconds
    told = launch_module(
        "stages.auditing.worker",
        job,
        work.out_dir,
        spec.audit_compute(),
        work.progress,
        timeout,
        torchrun=False,
    )
    found = Audit.model_validate(told)
    for finding in found.warnings:
        log.warning("%s: %s: %s", finding.title, finding.verdict, finding.evidence)
    return found
