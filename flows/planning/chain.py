"""The stages of a run before it starts: which results are stored, and why the other stages run.

Imports neither Prefect nor torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.inputs.specs import Plan, check_quantizer
from flows.results.reasons import parts_now, parts_of_record, reasons
from flows.results.tables import reported
from schemas.base import Schema
from schemas.files import StageRecord
from schemas.stages import STAGES, Stage, result_name
from schemas.tokenize_corpus import CorpusManifest
from stages.corpora import locate
from stages.planning.history import newest_records
from stages.store.keys import stage_key
from stages.store.machine import resolve_precision
from stages.store.store import Store

NEVER_RUN = "no result of this stage is stored"
DAMAGED = "its stored result is damaged or incomplete"
_SECTIONS = {"tokenize_corpus": "tokenize"}


@dataclass(frozen=True)
class NextStage:
    """One stage of the run: the stored `record`, or the `reasons` why it runs.

    `key`: None where an input is made anew. `spec`: None only for a report that is not known yet.
    """

    stage: Stage
    spec: Any
    key: str | None
    record: StageRecord | None
    reasons: tuple[str, ...]


def next_stages(plan: Plan, store: Store) -> tuple[dict[str, NextStage], CorpusManifest]:
    """Every stage in the order of the chain, and the corpus.

    Raises SpecError as the run would for a corpus or quantizer that cannot be used.
    """
    manifest = locate(plan.spec.tokenize, store.hashes, store.root / "cache" / "hub")
    results: dict[str, Schema] = {"manifest": manifest}
    chain: dict[str, NextStage] = {}
    for name, stage in STAGES.items():
        item = chain[name] = _next_stage(plan, store, stage, results, chain)
        if item.record is not None:
            results[result_name(name)] = item.record.result
            if name == "tokenize_corpus":
                check_quantizer(plan, item.record.result)
    return chain, manifest


def _next_stage(
    plan: Plan, store: Store, stage: Stage, results: Mapping[str, Schema], before: Mapping[str, NextStage]
) -> NextStage:
    spec = _spec_of(plan, stage, before)
    if unknown := [name for name in stage.inputs if name not in results]:
        makers = [maker for maker in before if result_name(maker) in unknown]
        return NextStage(stage, spec, None, None, (f"{makers[-1]} runs, and its result is not known yet",))
    inputs = {name: results[name] for name in stage.inputs}
    key = stage_key(stage, spec, inputs)
    if (record := store.find(stage, key)) is not None:
        return NextStage(stage, spec, key, record, ())
    return NextStage(stage, spec, key, None, _why(store, stage, key, spec, inputs))


def _spec_of(plan: Plan, stage: Stage, before: Mapping[str, NextStage]) -> Any:
    """The spec that the flow gives the stage, with its precision resolved."""
    spec = plan.spec
    if stage.name == "publish":
        made = [item.record.provenance for item in before.values() if item.record is not None]
        return reported(spec, plan.label, made)
    if stage.name == "quantize":
        return resolve_precision(plan.quantize)
    whole: dict[str, Any] = {"package": spec.package_spec(), "audit": spec}
    return resolve_precision(whole.get(stage.name) or getattr(spec, _SECTIONS.get(stage.name, stage.name)))


def _why(store: Store, stage: Stage, key: str, spec: Any, inputs: Mapping[str, Schema]) -> tuple[str, ...]:
    """What differs from the earlier result that differs least; the newest of equal ones."""
    if store.folder(stage, key).exists():
        return (DAMAGED,)
    now = parts_now(stage, spec, inputs)
    earlier = (parts_of_record(stage, record) for record in newest_records(store.root, stage))
    found = [reasons(before, now) for before in earlier]
    if not found:
        return (NEVER_RUN,)
    told = "figures of inputs" if stage.reads else "another version of Fairway's keys"
    nearest: list[str] = min(found, key=len)
    return tuple(nearest) or (told,)
