"""The audit of real runs: what works is found to work, and what a run only seems to do is found out."""

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from typer.testing import CliRunner

from flows.cli.main import app
from schemas.audit import Audit
from schemas.evaluate import LoraScores, Score
from schemas.overrides import apply_overrides
from schemas.quantize import FitTry, changed_to
from schemas.quantizer_settings import Gptq
from schemas.results import RunResults
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from schemas.techniques import TECHNIQUES
from stages.auditing.evidence import Evidence, gather
from stages.auditing.model_findings import model_findings
from stages.auditing.probe import Effect
from stages.auditing.worker import METRIC_COLUMNS, all_findings
from stages.core.blob.packing import open_blob, unpack
from stages.store.hashing import FileHashes
from stages.store.workspace import Workspace
from tests.faults.chain import Chain
from tests.flows.test_ablate import ATTENTION_WINDOW, FORMS

VALUE_EMBEDDING = ("value_embedding.table.weight", "value_embedding.proj.weight")


@pytest.fixture(scope="module")
def evidence(smoke_run: Any, smoke_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """What the audit of the smoke run is made of."""
    report = smoke_run.report
    work = Workspace(
        smoke_store, tmp_path_factory.mktemp("audit"), PurePosixPath("x"), RunOptions(), FileHashes(None)
    )
    table = pq.read_table(smoke_store / report.trained.metrics.path)
    metrics = {name: table.column(name).to_numpy() for name in METRIC_COLUMNS}
    return gather(report.spec, report, metrics, work)


@pytest.fixture(scope="module")
def doctored(run_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A run that claims every technique: but the value embedding is in no optimizer, and QAT begins after
    the last snapshot.
    """
    store = tmp_path_factory.mktemp("doctored")
    run = run_pipeline(
        store,
        f"train.optimizer.frozen={json.dumps(VALUE_EMBEDDING)}",
        "train.snapshots.start_lr_scale=0.25",
        "train.snapshots.every_steps=3",
        "merge.averaging.start_lr_scale=0.25",
        "train.qat.start_lr_scale=0.05",
    )
    return run, store


def test_every_technique_of_the_smoke_run_took_effect_and_every_rule_holds(smoke_run: Any) -> None:
    audit = smoke_run.report.audit
    assert audit.warnings == ()
    verdicts = {finding.key: finding.verdict for finding in audit.findings}
    spec = smoke_run.report.spec
    assert {technique.key: verdicts[technique.key] for technique in TECHNIQUES} == {
        technique.key: "took effect" if technique.is_on(spec) else "off" for technique in TECHNIQUES
    }
    assert {verdicts[key] for key in ("parameters", "muon", "adamw")} == {"took effect"}
    assert {verdicts[key] for key in ("blob", "targets", "bytes", "limit")} == {"holds"}
    assert (verdicts["cap"], verdicts["fit"]) == ("off", "off")
    assert len(verdicts) == len(audit.findings)
    assert all(finding.figures for finding in audit.findings if finding.verdict != "off")


@pytest.mark.slow
def test_the_forms_that_smoke_has_off_take_effect_where_they_are_on(
    run_pipeline: Any, tmp_path: Path
) -> None:
    # Windows inside documents differ from those over the stream only where the validation text has several.
    more = ("train.model.smear_form=by_input", "tokenize.split.val_fraction=0.6")
    report = run_pipeline(tmp_path, *FORMS, *ATTENTION_WINDOW, *more).report
    found = {technique.key: report.audit.finding(technique.key) for technique in TECHNIQUES}
    assert found.pop("sliding").verdict == "off"  # the attention window has its place
    assert {key: finding.verdict for key, finding in found.items()} == dict.fromkeys(found, "took effect")
    assert "layer 1 runs 2 times, 4 passes" in found["loops"].evidence
    assert found["loops"].figures["looped_steps"] == 26  # from 35 % of 40 steps on
    assert "1 layer from 2 on, two lanes; its tensor learned (blocks.2.lanes" in found["parallel"].evidence
    assert {score.windows for score in (report.merged.score, report.evaluation.sliding)} == {"documents"}
    assert found["document-windows"].figures["inner_document_starts"] >= 1
    # The packaged program, which scores itself, runs the layers as the merged model did.
    assert report.val_bpb_quantized == pytest.approx(report.merged.score.bpb, abs=0.05)


def test_documents_that_were_asked_for_and_not_heeded_are_found_out(evidence: Evidence) -> None:
    spec, evaluation = evidence.spec, evidence.results.evaluation
    asked = spec.derive(
        train=replace(spec.train, data=replace(spec.train.data, windows="documents")),
        merge=spec.merge.derive(scoring=replace(spec.merge.scoring, windows="documents")),
        evaluate=spec.evaluate.derive(scoring=replace(spec.evaluate.scoring, windows="documents")),
    )
    assert _verdict(evidence, "document-rows", spec=asked)[0] == "no effect"
    verdict, said = _verdict(evidence, "document-windows", spec=asked)
    assert verdict == "no effect"
    assert said.startswith("windows over the stream of tokens: last iterate, merged, quantized")
    merged, inside = evidence.results.merged, {"windows": "documents"}
    one_document = {
        "merged": merged.derive(last=merged.last.derive(**inside), score=merged.score.derive(**inside)),
        "evaluation": evaluation.derive(
            non_overlapping=evaluation.non_overlapping.derive(**inside),
            sliding=evaluation.sliding.derive(**inside),
        ),
    }
    verdict, said = _verdict(evidence, "document-windows", spec=asked, **one_document)
    assert verdict == "no effect"
    assert "no window crosses the 0 document starts" in said


def test_a_context_that_did_not_grow_is_found_out(evidence: Evidence) -> None:
    """Told by what the model was given, not by what the settings ask for."""
    train = evidence.spec.train
    whole = train.data.sequence_length
    data = replace(train.data, context_lengths=(whole // 4, whole // 2), context_ends=(0.1, 0.5))
    spec = evidence.spec.derive(train=replace(train, data=data))
    verdict, said = _verdict(evidence, "progressive-context", spec=spec)
    assert verdict == "no effect"
    assert said == (
        f"{whole // 4} tokens for 0 steps, then {whole // 2} tokens for 0 steps, "
        f"then {whole} tokens for 40 steps"
    )
    given = np.repeat([whole // 4, whole // 2, whole], [4, 16, 20])
    metrics = evidence.metrics | {"context": given}
    assert _verdict(evidence, "progressive-context", spec=spec, metrics=metrics)[0] == "took effect"
    metrics = evidence.metrics | {"context": np.minimum(given, whole // 2)}
    assert _verdict(evidence, "progressive-context", spec=spec, metrics=metrics)[0] == "in part"


def test_an_attention_window_beyond_the_training_sequences_is_told(evidence: Evidence) -> None:
    def said(reach: int) -> str:
        asked = ["evaluate.scoring.stride=0", f"evaluate.scoring.attention_window={reach}"]
        spec = apply_overrides(evidence.spec, asked)
        return _verdict(evidence, "attention-window", spec=spec)[1]

    trained = evidence.spec.train.data.sequence_length
    assert said(trained).endswith("against windows that do not overlap")
    assert said(trained + 1).endswith(f"; training had only {trained} tokens of context")


def test_test_time_training_is_told_with_its_gain_steps_and_clock(evidence: Evidence) -> None:
    evaluation = evidence.results.evaluation
    spec = apply_overrides(evidence.spec, ["evaluate.test_time_training.on=true"])
    without = evaluation.non_overlapping.derive(windows="documents", bpb=3.5)

    def found(adapted: Score | None, done_share: float) -> tuple[str, str]:
        counts = {"num_documents": 1, "num_steps": 254, "done_share": done_share, "seconds": 5.5}
        learned = LoraScores(adapted=adapted, without=without, **counts)
        changed = evaluation.derive(test_time_training=learned)
        assert _verdict(evidence, "targets", spec=spec, evaluation=changed)[0] == "holds"
        return _verdict(evidence, "test-time-training", spec=spec, evaluation=changed)

    verdict, said = found(without.derive(bpb=3.25), 1.0)
    assert verdict == "took effect"
    assert said == (
        "-0.25000 bpb against the same windows without it: 254 steps on 1 document in 5.5 of 600 s"
    )
    verdict, said = found(None, 0.4)
    assert verdict == "no effect"
    assert said.startswith("no score: its clock of 600 s ran out at 40.0% of the targets; give it more with")
    assert _verdict(evidence, "test-time-training", spec=spec)[0] == "no effect"


def test_loops_that_no_training_step_had_are_found_out(evidence: Evidence) -> None:
    model = replace(evidence.spec.train.model, loop_passes=2, loop_layers=(1,))
    late = replace(evidence.spec.train.schedule, loop_start_fraction=0.95, max_steps=10)
    train = replace(evidence.spec.train, model=model, schedule=late)
    metrics = {name: column[:9] for name, column in evidence.metrics.items()}
    spec = evidence.spec.derive(train=train)
    shipped = replace(evidence.shipped, effects={"loops": Effect((), 0.1, 0.1)})
    found = {
        finding.key: finding
        for finding in model_findings(replace(evidence, spec=spec, metrics=metrics, shipped=shipped))
    }
    assert found["loops"].verdict == "no effect"
    assert "on for 0 of 9 training steps" in found["loops"].evidence


def test_a_value_embedding_that_is_in_no_optimizer_is_found_out(doctored: tuple[Any, Path]) -> None:
    audit: Audit = doctored[0].report.audit
    found = audit.finding("ve")
    assert found.verdict == "no effect"
    assert found.figures["without_it_bpb"] == 0
    assert "3 of its 3 tensors never learned" in found.evidence
    parameters = audit.finding("parameters")
    assert parameters.verdict == "in part"
    for name in VALUE_EMBEDDING:
        assert name in parameters.evidence
    assert "in no optimizer, group frozen" in parameters.evidence
    # Its scale is in an optimizer, and weight decay moves it; without a gradient that is not learning.
    assert ": value_embedding.scales.2" in parameters.evidence


def test_qat_that_begins_after_the_last_snapshot_is_found_out(doctored: tuple[Any, Path]) -> None:
    report = doctored[0].report
    assert report.merged.steps == (36, 39)
    found = report.audit.finding("qat")
    assert found.verdict == "no effect"
    assert "1 step from step 40 on" in found.evidence
    assert "0 of 2 averaged snapshots" in found.evidence


def test_what_works_in_the_same_run_is_not_blamed(doctored: tuple[Any, Path]) -> None:
    assert {finding.key for finding in doctored[0].report.audit.warnings} == {"ve", "parameters", "qat"}


def test_a_clip_grid_of_all_ones_is_found_out(plain_clips: Any) -> None:
    audit = plain_clips.report.audit
    found = audit.finding("quantizer")
    assert found.verdict == "no effect"
    assert {item.key for item in audit.warnings} == {"quantizer", "qat"}  # trained for another clip grid
    assert "0 of 912 rows took a clip ratio other than 1" in found.evidence
    assert "every tensor equals that of plain rounding" in found.evidence


def test_show_and_the_artifact_warn(doctored: tuple[Any, Path]) -> None:
    run, store = doctored
    told = CliRunner().invoke(app, ["show", "last", "--store", str(store)]).stdout
    assert "warning: shared value embedding: no effect" in told
    assert "⚠ no effect" in told
    assert "every validation target scored once" in told
    warnings = json.loads(CliRunner().invoke(app, ["show", "last", "--store", str(store), "--json"]).stdout)[
        "warnings"
    ]
    assert [text.partition(":")[0] for text in warnings] == [
        "shared value embedding",
        "every parameter learns",
        "late QAT",
    ]
    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.state.state_details.flow_run_id])
        )
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=chosen)}
    assert artifacts["techniques"].description == "what each technique did: 3 to look at"
    rows = json.loads(artifacts["techniques"].data)
    assert [row["verdict"][0] for row in rows[:4]] == ["⚠", "⚠", "⚠", "t"]
    assert "**late QAT: no effect.**" in artifacts["result"].data
    assert '<tr class="flag"><td>late QAT</td>' in (store / run.report.published.html.path).read_text()


def test_what_quantization_costs_is_told_by_cause(smoke_run: Any, smoke_store: Path) -> None:
    report = smoke_run.report
    gap = report.audit.gap
    assert gap.num_sequences * gap.sequence_length == report.spec.audit.gap_tokens == 2_048
    causes = [part.cause for part in gap.parts]
    assert causes[0] == "clipping"
    assert causes[-1] == "fp16 scales"
    assert {
        "rounding, embedding",
        "rounding, attention",
        "rounding, mlp",
        "rounding, value embedding",
    } <= set(causes)
    assert sum(part.bpb for part in gap.parts) == pytest.approx(gap.total.bpb, abs=1e-12)
    # Other windows than the whole text's, so only near.
    assert (
        abs(gap.total.bpb - (report.val_bpb_quantized - report.val_bpb_merged))
        < 4 * gap.total.standard_error_bpb
    )
    page = (smoke_store / report.published.html.path).read_text()
    told = CliRunner().invoke(app, ["show", report.run_id, "--store", str(smoke_store)]).stdout
    for text in (*causes, f"{gap.total.bpb:+.5f}", f"{gap.total.divergence_nats:.5f}"):
        assert text in page
        assert text in told


def test_the_gap_by_cause_can_be_left_out(root: Path) -> None:
    chain = Chain(root, ["audit.gap_tokens=0"])
    assert [stage for stage in STAGES if not chain.run(stage).cached] == ["audit", "publish"]
    assert chain.results["audit"].gap is None
    page = (root / chain.results["publish"].html.path).read_text()
    assert "by cause" not in page
    assert "every validation target scored once" in page


def _verdict(evidence: Evidence, key: str, **changes: Any) -> tuple[str, str]:
    """Verdict and evidence when the spec, the metrics or some of the results say something else."""
    results = {name: value for name, value in changes.items() if name in RunResults.model_fields}
    others = {name: value for name, value in changes.items() if name not in results}
    changed = replace(evidence, results=evidence.results.derive(**results), **others)
    found = {item.key: item for item in all_findings(changed)}[key]
    return found.verdict, found.evidence


def test_a_target_that_is_scored_twice_or_not_at_all_breaks_the_rule(evidence: Evidence) -> None:
    evaluation = evidence.results.evaluation
    assert _verdict(evidence, "targets")[0] == "holds"
    for change in ({"num_targets": 12_192}, {"num_bytes": 13_107}, {"num_bos_targets": 7}):
        verdict, said = _verdict(
            evidence, "targets", evaluation=evaluation.derive(sliding=evaluation.sliding.derive(**change))
        )
        assert verdict == "broken"
        assert "quantized, sliding: " in said
    merged = evidence.results.merged
    assert (
        _verdict(evidence, "targets", merged=merged.derive(last=merged.last.derive(num_targets=12_190)))[0]
        == "broken"
    )


def test_bytes_that_do_not_add_up_break_the_rule(evidence: Evidence) -> None:
    size, packed = evidence.results.size, evidence.results.packed
    verdict, said = _verdict(evidence, "bytes", size=size.derive(total_bytes=size.total_bytes + 1))
    assert (verdict, "the files and the total" in said) == ("broken", True)
    verdict, said = _verdict(evidence, "bytes", packed=packed.derive(blob_bytes=packed.blob_bytes - 50))
    assert (verdict, "the blob and what quantization wrote" in said) == ("broken", True)
    assert (
        _verdict(evidence, "limit", size=size.derive(fits=False, margin_bytes=-50))[1]
        == "50 bytes OVER 16,000,000"
    )


def test_a_blob_that_is_not_the_merged_model_breaks_the_rule(evidence: Evidence) -> None:
    first, *rest = evidence.results.packed.tensors
    packed = evidence.results.packed.derive(tensors=(first.derive(rms_error=first.rms_error * 1.01), *rest))
    verdict, said = _verdict(evidence, "blob", packed=packed)
    assert verdict == "broken"
    assert first.name in said


def test_a_cap_is_kept_when_the_time_ran_out_in_the_last_step(evidence: Evidence) -> None:
    spec, trained = evidence.spec, evidence.results.trained

    def with_cap(seconds: float) -> Any:
        return spec.derive(
            train=replace(spec.train, schedule=replace(spec.train.schedule, max_seconds=seconds))
        )

    metrics = {**evidence.metrics, "seconds": np.linspace(0.25, 10.0, 40)}
    took = trained.derive(timings=trained.timings.derive(training_seconds=10.0))
    assert _verdict(evidence, "cap", spec=with_cap(10.0), trained=took, metrics=metrics)[0] == "holds"
    verdict, said = _verdict(evidence, "cap", spec=with_cap(9.9), trained=took, metrics=metrics)
    assert (verdict, "over by 0.100 s, which its last step took" in said) == ("holds", True)
    assert _verdict(evidence, "cap", spec=with_cap(9.0), trained=took, metrics=metrics)[0] == "broken"


def test_text_that_a_quantizer_reads_after_training_counts_against_the_cap(evidence: Evidence) -> None:
    spec, trained = evidence.spec, evidence.results.trained
    took = trained.derive(timings=trained.timings.derive(training_seconds=90.0))
    packed = evidence.results.packed.derive(text_seconds=9.0)

    def judged(reserve: float, read: Any = packed) -> tuple[str, str]:
        schedule = replace(spec.train.schedule, max_seconds=100.0, reserve_seconds=reserve)
        changed = spec.derive(train=replace(spec.train, schedule=schedule))
        return _verdict(evidence, "text-in-time", spec=changed, trained=took, packed=read)

    verdict, said = judged(10.0)
    assert (verdict, "90.0 s of training and 9.0 s" in said) == ("holds", True)
    assert judged(10.0, packed.derive(text_seconds=10.5))[0] == "broken"
    verdict, said = judged(0.0)
    assert (verdict, "train.schedule.reserve_seconds" in said) == ("off", True)
    assert judged(10.0, packed.derive(text_seconds=None)) == ("off", "only training reads text")


def test_schedules_that_did_nothing_are_found_out(evidence: Evidence) -> None:
    metrics, count = evidence.metrics, len(evidence.metrics["step"])
    flat = {
        **metrics,
        "muon_momentum": np.full(count, 0.95),
        "lr_scale": np.ones(count),
        "grad_norm": np.full(count, 0.1),
    }
    for key in ("momentum", "warmdown", "grad-clip"):
        assert _verdict(evidence, key, metrics=flat)[0] == "no effect"
    slow = {**metrics, "lr_scale": 0.6 * metrics["lr_scale"]}
    verdict, said = _verdict(evidence, "warmdown", metrics=slow)
    assert (verdict, "never reached" in said) == ("in part", True)
    trained = evidence.results.trained
    spared = [
        group.derive(decay_factor=1.0, weight_decay=0.0) if group.optimizer == "adamw" else group
        for group in trained.groups
    ]
    verdict, said = _verdict(evidence, "decay", trained=trained.derive(groups=tuple(spared)))
    assert verdict == "in part"
    assert "none on embeddings, scalars" in said


def test_averaging_of_one_snapshot_is_no_averaging(evidence: Evidence) -> None:
    merged = evidence.results.merged
    assert (
        _verdict(evidence, "swa", merged=merged.derive(steps=(40,), lr_scales=(0.04,), num_with_qat=1))[0]
        == "no effect"
    )


def test_qat_on_another_grid_than_what_ships_is_found_out(evidence: Evidence) -> None:
    packed = evidence.results.packed
    other = packed.derive(
        tensors=tuple(t.derive(format="int5") if t.format == "int6" else t for t in packed.tensors)
    )
    verdict, said = _verdict(evidence, "qat", packed=other)
    assert verdict == "in part"
    assert "14 tensors are stored on another grid" in said
    assert "blocks.1.attn.q.weight" in said


def test_qat_on_the_grid_of_another_quantizer_is_found_out(evidence: Evidence) -> None:
    trained, packed, spec = evidence.results.trained, evidence.results.packed, evidence.spec
    assert trained.qat_grid == spec.train.qat.grid == packed.method == "gptq_lite"
    by_gptq = {
        "packed": packed.derive(method="gptq"),
        "spec": spec.derive(quantize=changed_to(Gptq, spec.quantize)),
    }
    verdict, said = _verdict(evidence, "qat", **by_gptq)
    assert verdict == "in part"
    assert "trained on the grid of gptq_lite, but gptq quantizes" in said
    same_grid = by_gptq["spec"].derive(
        train=replace(spec.train, qat=replace(spec.train.qat, grid="round_to_nearest", clip_candidates=()))
    )
    told = _verdict(
        evidence,
        "qat",
        **by_gptq | {"spec": same_grid},
        trained=trained.derive(qat_grid="round_to_nearest"),
    )
    assert told[0] == "took effect"
    verdict, said = _verdict(
        evidence, "qat", spec=spec.derive(quantize=replace(spec.quantize, clip_candidates=(1.0, 0.5)))
    )
    assert verdict == "in part"
    assert "other clip_candidates" in said


def test_the_self_projection_is_that_of_the_formula(
    evidence: Evidence, smoke_run: Any, smoke_store: Path
) -> None:
    """|y·v̂|/‖y‖ of the last layer, with attention written out by its definition."""
    from stages.auditing.probe import load_model
    from stages.core.attention import attend_causally, rotary_angles, rotate_partly
    from stages.core.model import rms_norm

    spec = smoke_run.report.spec.train.model
    state, _ = unpack((smoke_store / smoke_run.report.package.blob.path).read_bytes())
    model, ids = load_model(spec, state), evidence.shipped.windows.ids[:, :-1]
    layer, seen = model.blocks[-1].attn, []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.inference_mode():
        model.hidden(ids)
        handle.remove()
        x, _, shift, *_ = seen[0]
        batch, tokens, _ = x.shape
        angles = rotary_angles(tokens, spec.rope_dims, spec.rope_base, x.device)
        q = (
            rotate_partly(rms_norm(layer.q(x).view(batch, tokens, spec.num_heads, -1)), *angles)
            * layer.q_gain[:, None]
        )
        k = rotate_partly(rms_norm(layer.k(x).view(batch, tokens, spec.num_kv_heads, -1)), *angles)
        v = (layer.v(x) + shift).view(batch, tokens, spec.num_kv_heads, -1)
        y = attend_causally(q, k, v)
        direction = (v / v.norm(dim=-1, keepdim=True)).repeat_interleave(
            spec.num_heads // spec.num_kv_heads, dim=2
        )
        expected = float(((y * direction).sum(-1).abs() / y.norm(dim=-1)).mean())
    found = evidence.shipped.own_value
    assert found is not None
    assert found.before == pytest.approx(expected, rel=1e-4)
    assert found.after < 1e-5
    assert found.before > 0.1


def test_the_probe_sees_a_document_start_even_in_a_text_of_one_document(evidence: Evidence) -> None:
    assert evidence.counted.num_bos_targets == 0
    assert evidence.shipped.windows.num_document_starts == 1


def test_what_a_coded_and_fitted_blob_spent_is_measured(fitted: Any, smoke_store: Path) -> None:
    packed, audit = fitted.report.packed, fitted.report.audit
    found, fit = audit.finding("quantizer"), audit.finding("fit")
    assert (found.verdict, fit.verdict) == ("took effect", "holds")
    _, payload = open_blob((smoke_store / fitted.report.package.blob.path).read_bytes())
    floats = sum(tensor.stored_bytes for tensor in packed.tensors if tensor.format == "fp32")
    weights = sum(tensor.num_elements for tensor in packed.tensors if tensor.format == "coded")
    assert found.figures["bits_per_weight"] == pytest.approx(8 * (len(payload) - floats) / weights)
    assert 2 < found.figures["entropy_bits_per_weight"] < 8
    assert found.figures["divergence_nats"] == packed.divergence_nats
    # the estimate that decides the steps, against what they really did
    assert found.figures["estimated_loss_nats"] == pytest.approx(packed.divergence_nats, rel=0.6)
    assert f"{packed.divergence_nats:.3g} nats a token of training text" in found.evidence
    assert 0 <= fit.figures["below_share"] <= 0.001
    assert fit.figures["tries"] == len(packed.fit_tries) <= 16
    assert f"{fitted.report.size.total_bytes:,} bytes of {fitted.limit_bytes:,}" in fit.evidence


def _fit_verdict(evidence: Evidence, fitted: Any, **packed: Any) -> tuple[str, str]:
    report = fitted.report
    return _verdict(
        evidence, "fit", spec=report.spec, size=report.size, packed=report.packed.derive(**packed)
    )


def test_a_fit_that_shipped_another_size_or_missed_the_limit_breaks_the_rule(
    evidence: Evidence, fitted: Any
) -> None:
    report = fitted.report
    assert _fit_verdict(evidence, fitted)[0] == "holds"
    assert _fit_verdict(evidence, fitted, step_multiplier=report.packed.step_multiplier * 1.01)[0] == "broken"
    verdict, said = _fit_verdict(evidence, fitted, blob_bytes=report.packed.blob_bytes + fitted.limit_bytes)
    assert (verdict, "OVER" in said) == ("broken", True)
    smaller = FitTry(step_multiplier=report.packed.step_multiplier, package_bytes=report.size.code_bytes + 9)
    verdict, said = _fit_verdict(evidence, fitted, blob_bytes=9, fit_tries=(smaller,))
    assert (verdict, said.endswith("finer quantization steps give no more bytes")) == ("holds", True)


def test_rules_that_leave_nothing_to_code_are_found_out(evidence: Evidence, fitted: Any) -> None:
    floats = tuple(tensor for tensor in fitted.report.packed.tensors if tensor.format == "fp32")
    packed = fitted.report.packed.derive(tensors=floats)
    verdict, said = _verdict(evidence, "quantizer", spec=fitted.report.spec, packed=packed)
    assert (verdict, "nothing is coded" in said) == ("no effect", True)


def test_gptq_says_how_far_the_predictions_move_and_when_it_moved_no_matrix(evidence: Evidence) -> None:
    spec, packed = (
        evidence.spec,
        evidence.results.packed.derive(method="gptq", divergence_nats=0.0125),
    )
    spec = spec.derive(quantize=changed_to(Gptq, spec.quantize))
    matrices = [tensor for tensor in packed.tensors if tensor.format.startswith("int")]
    moved = [tensor for tensor in matrices if tensor.rms_error != tensor.rms_error_round_to_nearest]
    verdict, said = _verdict(evidence, "quantizer", spec=spec, packed=packed)
    assert verdict == "took effect"
    assert f"error compensation on training text changed {len(moved)} of {len(matrices)} matrices" in said
    assert "the predictions change by 0.0125 nats" in said
    same = packed.derive(
        tensors=tuple(tensor.derive(rms_error=tensor.rms_error_round_to_nearest) for tensor in packed.tensors)
    )
    assert _verdict(evidence, "quantizer", spec=spec, packed=same)[0] == "no effect"
