"""The process that measures for `audit`: python -m stages.auditing.worker JOB.json RESULT.json

In: an `AuditJob`. Out: an `Audit`. A process of its own has the thread count that the spec names, whatever
else the flow's process does, and so the same last digits.
"""

from pathlib import PurePosixPath

from safetensors.torch import load_file

from schemas.audit import Audit, Finding
from schemas.errors import StageError
from schemas.gap import GapByCause
from stages.auditing.evidence import Evidence, gather
from stages.auditing.gap import choose_sequences, gap_by_cause
from stages.auditing.job import AuditJob
from stages.auditing.model_findings import model_findings
from stages.auditing.shipping_findings import shipping_findings
from stages.auditing.training_findings import training_findings
from stages.auditing.written import written_starts
from stages.core.bits_per_byte import load_token_bytes
from stages.core.distributed import compute_with
from stages.core.loader import TokenStream
from stages.processes.launch import job_of, say_progress
from stages.store.hashing import FileHashes
from stages.store.workspace import Workspace
from stages.training.metrics import read_metrics

METRIC_COLUMNS = ("step", "lr_scale", "muon_momentum", "seconds", "grad_norm", "qat_on", "context")


def main() -> None:
    with job_of(AuditJob) as (job, leave):
        compute_with(job.spec.audit_compute().threads_per_process, deterministic=True)
        work = Workspace(
            job.root, job.folder, PurePosixPath("audit"), job.runtime, FileHashes(None), say_progress
        )
        metrics = read_metrics(work.read(job.results.trained.metrics), METRIC_COLUMNS)
        leave(measure(gather(job.spec, job.results, metrics, work), work))


def measure(evidence: Evidence, work: Workspace) -> Audit:
    """All findings, the gap by cause, and what the models write."""
    findings = tuple(all_findings(evidence))
    return Audit(
        findings=findings,
        probe_tokens=evidence.shipped.windows.num_tokens,
        gap=_gap(evidence, work),
        written=written_starts(evidence, work),
    )


def _gap(evidence: Evidence, work: Workspace) -> GapByCause | None:
    """What quantization costs, by cause.

    None where it is off and where the validation text is too short for two sequences.
    """
    spec, results = evidence.spec, evidence.results
    tokens = TokenStream([work.read(ref) for ref in results.tokenized.val_shards])
    table = load_token_bytes(work.read(results.tokenized.tokenizer))
    sequences = choose_sequences(tokens, table, spec.audit.gap_tokens, spec.merge.scoring.sequence_length)
    if sequences is None:
        return None
    try:
        return gap_by_cause(
            results.merged.model,
            load_file(work.read(results.merged.weights)),
            evidence.shipped.state,
            spec.quantize,
            sequences,
            work.progress,
        )
    except ValueError as error:
        raise StageError(
            f"the gap cannot be measured by cause: {error}. audit.gap_tokens=0 leaves it out"
        ) from error


def all_findings(evidence: Evidence) -> list[Finding]:
    return [*model_findings(evidence), *training_findings(evidence), *shipping_findings(evidence)]


if __name__ == "__main__":
    main()
