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
from stages.auditing.job import AuditJob
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
    audited = launch_module(
        "stages.auditing.worker",
        AuditJob(spec=spec, results=results, root=work.root, folder=work.out_dir, runtime=work.runtime),
        Audit,
        work.out_dir,
        spec.audit_compute(),
        work.progress,
        work.runtime.stage_timeout_seconds,
    )
    for finding in audited.warnings:
        log.warning("%s: %s: %s", finding.title, finding.verdict, finding.evidence)
    return audited
