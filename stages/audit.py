"""Audit: what each technique that was switched on really did, and whether the rules hold, measured on records and files.

    python -m stages.audit --spec pipeline.json --input tokenized=…/record.json --input trained=…    (--help names all inputs)

The spec is the run's whole PipelineSpec. A technique without effect is a warning and no error: the run keeps its figures.
"""

import logging

from safetensors.torch import load_file

from schemas.audit import Audit, Finding
from schemas.check_size import SizeReport
from schemas.errors import StageError
from schemas.evaluate import Evaluation
from schemas.gap import GapByCause
from schemas.merge import MergedModel
from schemas.package import Package
from schemas.pipeline import PipelineSpec
from schemas.quantize import PackedModel
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import Checkpoints
from stages.auditing.evidence import Evidence, Records, gather
from stages.auditing.gap import choose_sequences, gap_by_cause
from stages.auditing.model_findings import model_findings
from stages.auditing.shipping_findings import shipping_findings
from stages.auditing.training_findings import training_findings
from stages.core.bits_per_byte import load_token_bytes
from stages.core.loader import TokenStream
from stages.training_metrics import read_metrics
from stages.workspace import Workspace

log = logging.getLogger(__name__)

METRIC_COLUMNS = ("step", "lr_scale", "muon_momentum", "seconds", "grad_norm", "qat_on")


def audit(
    spec: PipelineSpec,
    tokenized: TokenizedCorpus,
    trained: Checkpoints,
    merged: MergedModel,
    packed: PackedModel,
    package: Package,
    size: SizeReport,
    evaluation: Evaluation,
    work: Workspace,
) -> Audit:
    """The findings, the model's first. Raises StageError when the training metrics lack a column or hold no step."""
    records = Records(
        spec, tokenized, trained, merged, packed, package, size, evaluation, read_metrics(work.read(trained.metrics), METRIC_COLUMNS)
    )
    evidence = gather(records, work)
    found = Audit(findings=tuple(all_findings(evidence)), probe_tokens=evidence.shipped.windows.num_tokens, gap=_gap(evidence, work))
    for finding in found.warnings:
        log.warning("%s: %s: %s", finding.title, finding.verdict, finding.evidence)
    return found


def _gap(evidence: Evidence, work: Workspace) -> GapByCause | None:
    """What quantization costs, by cause. None where it is off and where the validation text is too short for two sequences."""
    records = evidence.records
    tokens = TokenStream([work.read(ref) for ref in records.tokenized.val_shards])
    table = load_token_bytes(work.read(records.tokenized.tokenizer))
    sequences = choose_sequences(tokens, table, records.spec.audit.gap_tokens, records.spec.merge.scoring.sequence_length)
    if sequences is None:
        return None
    try:
        return gap_by_cause(
            records.merged.model,
            load_file(work.read(records.merged.weights)),
            evidence.shipped.state,
            records.spec.quantize,
            sequences,
            work.progress,
        )
    except ValueError as error:
        raise StageError(f"the gap cannot be measured by cause: {error}. audit.gap_tokens=0 leaves it out") from error


def all_findings(evidence: Evidence) -> list[Finding]:
    return [*model_findings(evidence), *training_findings(evidence), *shipping_findings(evidence)]


if __name__ == "__main__":
    from stages.by_hand import main

    main("audit")
