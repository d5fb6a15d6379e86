"""The report: complete, self-contained, escaped, the same bytes for the same results."""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from presets import load_preset
from schemas.audit import Audit, Finding
from schemas.check_size import SizePart, SizeReport, TensorGroup
from schemas.compute_settings import ComputeSettings
from schemas.errors import StageError
from schemas.evaluate import Evaluation, LoraScores, Score
from schemas.files import FileRef, Machine, Provenance
from schemas.merge import MergedModel
from schemas.model_settings import ModelSettings
from schemas.package import Package
from schemas.publish import PublishedReport, PublishSpec, ReportedSetting
from schemas.quantize import ClipShare, PackedModel, TensorReport
from schemas.results import RunResults
from schemas.stages import STAGES
from schemas.tokenize_corpus import SplitCounts, TokenizedCorpus
from schemas.train import ParameterChange, ParameterGroup, Snapshot, TrainingResult, TrainTimings
from stages.audit import audit
from stages.auditing.job import AuditJob
from stages.publish import METRIC_COLUMNS, publish
from stages.report import content, plots, rows
from stages.store.keys import stage_key
from stages.store.machine import resolve_precision
from stages.store.source import reachable_modules, templates
from stages.store.workspace import Workspace
from stages.training.metrics import read_metrics

STEPS = 60
HOSTILE = '<script>alert("x")</script>'


def _metrics(steps: int = STEPS) -> dict[str, list[Any]]:
    scale = [min(1.0, 2 * (1 - step / steps)) for step in range(1, steps + 1)]
    return {
        "step": list(range(1, steps + 1)),
        "loss": [6 * np.exp(-step / 20) + 3 for step in range(steps)],
        "lr_scale": scale,
        "muon_momentum": [0.95] * steps,
        "tokens": [1024 * step for step in range(1, steps + 1)],
        "seconds": [0.1 * step for step in range(1, steps + 1)],
        "grad_norm": [0.5] * steps,
        "qat_on": [value < 0.1 for value in scale],
        "snapshot": [value < 0.2 and step % 2 == 0 for step, value in enumerate(scale)],
    }


def _ref(name: str) -> FileRef:
    return FileRef(path=f"stages/x/{name}", num_bytes=1, sha256="0" * 64)


def _score(bpb: float) -> Score:
    nats = bpb * np.log(2) * 1000
    counts = {"num_targets": 400, "num_bytes": 1000, "num_bos_targets": 3}
    return Score(bpb=bpb, loss=2.5, nll_nats_sum=nats, bos_nats_sum=np.log(2) * 20, seconds=0.1, **counts)


def _change(name: str, shape: tuple[int, ...], **figures: Any) -> ParameterChange:
    return ParameterChange(name=name, shape=shape, **figures)


def _results(metrics: FileRef, sliding: bool = True, fits: bool = True) -> dict[str, Any]:
    split = SplitCounts(
        num_documents=9,
        num_tokens=400,
        num_bos=9,
        utf8_bytes=1010,
        normalized_utf8_bytes=1000,
        zstd_bytes=300,
        xz_bytes=310,
    )
    tensors = (
        TensorReport(
            name="blocks.0.attn.q.weight",
            shape=(8, 16),
            format="int6",
            num_elements=128,
            clips=(ClipShare(clip_ratio=0.9, num_rows=2), ClipShare(clip_ratio=1.0, num_rows=6)),
            rms_error=0.01,
            rms_error_round_to_nearest=0.0125,
            relative_error=0.02,
            entropy_bits=5.1,
            stored_bytes=144,
            compressed_bytes=100,
        ),
        TensorReport(
            name="smear.gate",
            shape=(16,),
            format="fp32",
            num_elements=16,
            clips=(),
            rms_error=0,
            rms_error_round_to_nearest=0,
            relative_error=0,
            entropy_bits=4,
            stored_bytes=64,
            compressed_bytes=60,
        ),
    )
    snapshot = Snapshot(step=58, lr_scale=0.07, qat_on=True, weights=_ref("58"))
    return {
        "tokenized": TokenizedCorpus(
            tokenizer=_ref("t"),
            tokenizer_sha256="1" * 64,
            vocab_size=300,
            bos_id=1,
            train_shards=(),
            val_shards=(),
            train=split,
            val=split,
        ),
        "trained": TrainingResult(
            model=ModelSettings(),
            last=snapshot,
            snapshots=(snapshot,),
            num_parameters=144,
            steps=STEPS,
            tokens_seen=61_440,
            epochs=1.5,
            stopped_by="max_steps",
            final_train_loss=3.1,
            qat_steps=3,
            groups=(
                ParameterGroup(
                    name="matrices",
                    optimizer="muon",
                    lr=0.02,
                    weight_decay=0.04,
                    decay_factor=0.97,
                    parameters=("a",),
                    num_parameters=128,
                ),
            ),
            changes=(
                _change(
                    "blocks.0.attn.q.weight",
                    (8, 16),
                    initial_rms=0.3,
                    final_rms=0.4,
                    change_rms=0.2,
                    learned_rms=0.2,
                    qat_bits=6,
                ),
                _change(
                    HOSTILE, (16,), initial_rms=1, final_rms=1, change_rms=0, learned_rms=0, qat_bits=None
                ),
            ),
            metrics=metrics,
            timings=TrainTimings(
                training_seconds=6,
                warmup_seconds=0,
                median_step_milliseconds=100,
                tokens_per_second=10_240,
                snapshot_seconds=0.01,
                checkpoint_seconds=0.02,
                resumed_from_steps=(),
                peak_memory_bytes=10**9,
            ),
        ),
        "merged": MergedModel(
            model=ModelSettings(),
            weights=_ref("m"),
            method="swa",
            steps=(58,),
            lr_scales=(0.07,),
            num_with_qat=1,
            distance_from_last=0.01,
            last=_score(1.9),
            score=_score(1.88),
        ),
        "packed": PackedModel(
            blob=_ref("model.fwz"),
            method="gptq_lite",
            num_parameters=144,
            stored_bytes=300,
            header_bytes=90,
            blob_bytes=200,
            blob_bytes_round_to_nearest=210,
            tensors=tensors,
        ),
        "package": Package(
            folder="stages/p",
            script=_ref("train_gpt.py"),
            blob=_ref("model.fwz"),
            modules=("a",),
            source_sha256="2" * 64,
        ),
        "size": SizeReport(
            limit_bytes=16_000_000 if fits else 1000,
            total_bytes=1200,
            code_bytes=1000,
            model_bytes=200,
            margin_bytes=16_000_000 - 1200 if fits else -200,
            fits=fits,
            files=(SizePart(name="train_gpt.py", num_bytes=1000), SizePart(name="model.fwz", num_bytes=200)),
            tensor_groups=(
                TensorGroup(name="attention", num_bytes=150, num_weights=400, entropy_bits=2.5),
                TensorGroup(name="controls", num_bytes=40, num_weights=10, entropy_bits=32.0),
                TensorGroup(name="header", num_bytes=10),
            ),
            largest=(SizePart(name="train_gpt.py", num_bytes=1000),),
        ),
        "evaluation": Evaluation(
            non_overlapping=_score(1.885),
            sliding=_score(1.84) if sliding else None,
            text_utf8_bytes=1010,
            text_normalized_bytes=1000,
            byte_account="1,000 bytes by the token table = the normalised text",
        ),
        "audit": Audit(
            findings=(
                Finding(
                    key="xsa",
                    title="XSA",
                    verdict="took effect",
                    evidence="2 layers",
                    figures={"without_it_bpb": 0.1},
                ),
                Finding(
                    key="qat",
                    title="late QAT",
                    verdict="no effect",
                    evidence=f"began too late {HOSTILE}",
                    figures={},
                ),
            ),
            probe_tokens=4096,
        ),
    }


@pytest.fixture
def published(make_workspace: Callable[..., Workspace]) -> Callable[..., str]:
    """Publishes synthetic results; gives the page."""

    def make(
        spec: PublishSpec | None = None, name: str = "publish", steps: int = STEPS, **changes: Any
    ) -> str:
        work = make_workspace(name)
        pq.write_table(pa.table(_metrics(steps)), work.out_dir / "metrics.parquet")
        result = publish(
            spec or PublishSpec(),
            **STAGES["publish"].arguments(_results(work.ref(work.out_dir / "metrics.parquet"), **changes)),
            work=work,
        )
        assert isinstance(result, PublishedReport)
        assert work.read(result.loss_curve).read_text().startswith("<svg")
        return work.read(result.html).read_text()

    return make


class _Collector(HTMLParser):
    """Every attribute that could make a browser ask for something, and every open tag without its end."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action", "data", "srcset")
        ]


def test_the_page_asks_for_nothing_outside_and_runs_only_the_scripts_that_its_policy_names(
    published: Callable[..., str],
) -> None:
    page = published()
    parser = _Collector()
    parser.feed(page)
    assert all(address.startswith("#") for address in parser.addresses)
    assert not {"link", "img", "iframe", "object", "embed"} & set(parser.tags)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == parser.tags.count("script") == 2
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    sources = dict(part.split(maxsplit=1) for part in unescape(policy).split("; "))
    assert sources["default-src"] == "'none'"
    assert sources["script-src"].split() == [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ]
    assert not re.search(r"@import|url\((?!#)", page)


def test_text_from_results_and_settings_is_escaped(published: Callable[..., str]) -> None:
    page = published(
        PublishSpec(title=HOSTILE, run_name=HOSTILE, settings=(ReportedSetting(name=HOSTILE, value=HOSTILE),))
    )
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;") >= 5


def test_the_page_shows_every_score_and_what_each_step_did(published: Callable[..., str]) -> None:
    page = published()
    for figure in ("1.90000", "1.88000", "1.88500", "1.84000", "-0.02000", "+0.00500", "-0.04500"):
        assert figure in page
    assert "0.02000" in page  # the share of BOS: 20 bits over 1000 bytes
    assert "2.3762" in page  # zstd: 8·300 bits over the 1,010 bytes of the text as it came


def test_test_time_training_has_rows_of_its_own() -> None:
    results = RunResults.model_validate(
        {name: value for name, value in _results(_ref("metrics")).items() if name != "audit"}
    )
    inside = _score(1.83).derive(windows="documents")
    learned = LoraScores(
        adapted=inside.derive(bpb=1.8),
        without=inside,
        num_documents=3,
        num_steps=9,
        done_share=1.0,
        seconds=2.0,
    )

    def shown(learned: LoraScores | None) -> dict[str, dict[str, str]]:
        changed = results.derive(evaluation=results.evaluation.derive(test_time_training=learned))
        return {row["figure"]: row for row in rows.result_table(changed, "run", "stride 64").dicts()} | {
            row["step"]: row for row in rows.score_table(changed).dicts()
        }

    name, step = "val_bpb test-time training", "the same, test-time training inside documents"
    assert shown(learned)[name] == {
        "figure": name,
        "value": "1.80000",
        "note": "windows inside documents; -0.03000 by it",
    }
    # Nothing is said about the difference of two modes.
    assert shown(learned)["quantized, sliding in chunks inside documents"]["change"] == ""
    assert shown(learned)[step]["change"] == "-0.03000"
    late = shown(learned.derive(adapted=None, done_share=0.25))
    assert (late[name]["value"], late[name]["note"]) == ("–", "its clock ran out at 25.0%")
    assert step not in late
    assert name not in shown(None)
    assert shown(None)["val_bpb quantized"] == shown(learned)["val_bpb quantized"]


def test_each_part_of_the_account_is_there(published: Callable[..., str]) -> None:
    origin = Provenance(
        stage="train",
        key="k" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        seconds=1.5,
        host="somewhere",
        fairway_version="0",
        code_sha256="c" * 64,
        libraries={"torch": "2.13.0"},
        machine=Machine(
            kind="GenuineIntel AVX2 AVX2; torch 2.13.0",
            cpu="Some CPU",
            capability="AVX2",
            isa="AVX2",
            cores=2,
            precision="float32: this CPU (AVX2) has no bfloat16 instructions",
            processes=1,
            threads=2,
            gpus=(),
            cuda=None,
            triton="absent",
            torch="2.13.0 cf30153c",
            python="3.11.0",
            switches={},
        ),
        inputs={},
    )
    page = published(
        PublishSpec(settings=(ReportedSetting(name="train.seed", value="7"),), provenance=(origin,))
    )
    for text in (
        "blocks.0.attn.q.weight",
        "1: 75%, 0.9: 25%",
        "smear.gate",
        "matrices",
        "muon",
        "train.seed",
        "torch 2.13.0",
        "somewhere",
        "Some CPU",
        ">float32</td><td>this CPU (AVX2) has no bfloat16 instructions</td>",
        "GenuineIntel AVX2 AVX2; torch 2.13.0",
        "1 did not change",
    ):
        assert text in page, text
    assert "36.00% less squared error and a blob 10 bytes smaller" in page


@pytest.mark.parametrize("stage", ["audit", "publish"])
def test_what_a_stage_tells_of_its_inputs_is_part_of_its_key(
    stage: str, make_workspace: Callable[..., Workspace]
) -> None:
    work = make_workspace("metrics")
    for name in ("metrics.parquet", "others.parquet"):
        (work.out_dir / name).write_text(name)
    results = _results(work.ref(work.out_dir / "metrics.parquet"))
    spec = resolve_precision(load_preset("smoke")) if stage == "audit" else PublishSpec()

    def key(**changes: Any) -> str:
        inputs = {**results, **changes}
        return stage_key(STAGES[stage], spec, {name: inputs[name] for name in STAGES[stage].inputs})

    trained, merged = results["trained"], results["merged"]
    other_metrics = work.ref(work.out_dir / "others.parquet")
    told = [
        {"merged": merged.derive(last=merged.last.derive(bpb=1.5))},
        {"merged": merged.derive(score=merged.score.derive(bpb=1.5))},
        {"trained": trained.derive(timings=trained.timings.derive(training_seconds=601.0))},
        {"trained": trained.derive(metrics=other_metrics)},
    ]
    assert len({key(), *(key(**changes) for changes in told)}) == 5
    assert key(merged=merged.derive(score=merged.score.derive(seconds=99.0))) == key()  # told nowhere


@pytest.mark.parametrize("threads", [1, 3])
def test_the_audit_measures_with_the_threads_of_the_settings(
    threads: int, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, seen = make_workspace("audit"), []

    def launch(
        module: str,
        job: AuditJob,
        result_type: type[Audit],
        folder: Path,
        compute: ComputeSettings,
        *rest: Any,
    ) -> Audit:
        seen.append((module, compute.threads_per_process, job.spec.evaluate.compute.threads_per_process))
        return result_type(findings=(), probe_tokens=0)

    monkeypatch.setattr("stages.audit.launch_module", launch)
    monkeypatch.setattr(Workspace, "read", lambda self, ref: self.root / ref.path)
    results = _results(FileRef(path="metrics.parquet", num_bytes=1, sha256="0" * 64))
    del results["audit"]
    spec = resolve_precision(load_preset("smoke"))
    spec = spec.derive(
        evaluate=spec.evaluate.derive(compute=replace(spec.evaluate.compute, threads_per_process=threads))
    )
    audit(spec, RunResults(**results), work)
    assert seen == [("stages.auditing.worker", threads, threads)]


def test_a_technique_without_effect_stands_out(published: Callable[..., str]) -> None:
    page = published()
    assert re.search(r'<tr class="flag"><td>late QAT</td><td>⚠ no effect</td><td>began too late', page)
    assert "<tr><td>XSA</td><td>took effect</td><td>2 layers</td></tr>" in page
    assert "1 to look at" in page


def test_the_same_results_give_the_same_bytes(published: Callable[..., str]) -> None:
    assert published(name="first") == published(name="second")


def test_it_copes_with_no_sliding_score_one_step_and_a_size_over_the_limit(
    published: Callable[..., str],
) -> None:
    page = published(sliding=False, steps=1, fits=False)
    assert '<span>limit</span><b>1,000</b><span class="bad">200 bytes OVER</span>' in page
    assert "sliding windows" not in page


def test_metrics_without_a_column_or_a_step_are_refused(make_workspace: Callable[..., Workspace]) -> None:
    folder = make_workspace().out_dir
    pq.write_table(pa.table({"step": [1]}), folder / "a.parquet")
    with pytest.raises(StageError, match="no column loss"):
        read_metrics(folder / "a.parquet", METRIC_COLUMNS)
    pq.write_table(pa.table(_metrics()).slice(0, 0), folder / "b.parquet")
    with pytest.raises(StageError, match="no step"):
        read_metrics(folder / "b.parquet", METRIC_COLUMNS)


def test_a_themed_plot_takes_its_colours_from_the_page_and_an_unthemed_one_brings_them(
    published: Callable[..., str],
) -> None:
    metrics = {name: np.array(values) for name, values in _metrics().items()}
    themed, alone = plots.loss_curve(metrics, themed=True), plots.loss_curve(metrics, themed=False)
    assert "currentColor" in themed
    assert "var(--grid)" in themed
    assert "currentColor" not in alone
    assert "var(--" not in alone


def test_the_merged_model_says_how_many_of_its_snapshots_or_steps_were_under_qat() -> None:
    every = _results(_ref("metrics.parquet"))
    results = RunResults.model_validate({name: every[name] for name in RunResults.types()})
    merged = results.merged
    words = f"{merged.averaged}, {merged.num_with_qat} under QAT"
    assert words in {row[2] for row in rows.result_table(results, "", "stride 64").rows}
    ema = merged.derive(method="ema_of_steps", steps=(20,), num_with_qat=1)
    of_steps = results.derive(merged=ema, trained=results.trained.derive(qat_steps=7))
    assert rows.averaged(of_steps) == "EMA of 20 steps, 7 under QAT"


def test_the_running_mean_is_the_mean_of_the_window() -> None:
    values = np.random.default_rng(0).normal(size=300)
    smooth = plots.running_mean(values, share=0.1)
    slow = [values[max(0, i - 15) : i + 16].mean() for i in range(300)]
    np.testing.assert_allclose(smooth, slow, rtol=1e-12)


def test_a_method_that_gains_nothing_is_said_to_gain_nothing() -> None:
    packed: PackedModel = _results(_ref("m"))["packed"]
    worse = packed.derive(
        blob_bytes=packed.blob_bytes_round_to_nearest + 5,
        tensors=tuple(
            tensor.derive(rms_error=tensor.rms_error_round_to_nearest) for tensor in packed.tensors
        ),
    )
    assert content.quantization_gain(worse).endswith(
        "gptq_lite gives no less squared error and a blob 5 bytes larger."
    )
    assert "gains nothing" in content.quantization_gain(packed.derive(method="round_to_nearest"))


def test_the_pages_template_is_part_of_the_stages_code() -> None:
    modules = reachable_modules(["stages.publish"])
    assert [path.name for path in templates(modules.values())] == [
        "hover.css",
        "hover.js",
        "page.html",
        "style.html",
        "tables.html",
        "uPlot.iife.min.js",
        "uPlot.min.css",
    ]
    assert templates(reachable_modules(["stages.quantize"]).values()) == []


def test_bits_a_weight_stand_beside_the_entropy_of_each_group() -> None:
    table = rows.budget_table(_results(_ref("metrics.parquet"))["size"])
    assert {row[0]: row[-4:] for row in table.rows if row[-1]} == {
        "attention": ("400", "3.000", "2.500", "+20.0%"),
        "controls": ("10", "32.000", "32.000", "+0.0%"),
    }
