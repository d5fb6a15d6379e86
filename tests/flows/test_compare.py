"""Runs side by side: what differs, why a stage ran again, and what the seeds in the store show."""

import csv
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli.main import app
from flows.compare import compare
from flows.results.compared import UNKNOWN_SPREAD, compare_runs
from flows.results.compared_page import page, read_curves
from schemas.compare import ComparedRuns
from schemas.pipeline import PipelineReport
from schemas.runtime import RunOptions
from stages.report.curves_plot import CURVE_COLUMNS, curves_svg
from stages.store import keys
from stages.store.runs import list_reports, save_report
from stages.store.store import Store
from stages.training.metrics import read_metrics


def fairway(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def other_run(run_pipeline: Callable[..., Any], smoke_run: Any, smoke_store: Path) -> Any:
    """The smoke run with one setting changed, which only its audit and its report notice."""
    return run_pipeline(smoke_store, "audit.gap_tokens=0")


def _compared(store: Path, *reports: PipelineReport) -> ComparedRuns:
    return compare_runs(Store(store), reports, list_reports(store))


def _why(found: ComparedRuns) -> dict[str, tuple[str, ...]]:
    return {stage.stage: stage.reasons[0] for stage in found.stages if stage.reasons[0]}


def test_two_runs_list_exactly_the_setting_in_which_they_differ(
    smoke_run: Any, other_run: Any, smoke_store: Path
) -> None:
    found = _compared(smoke_store, smoke_run.report, other_run.report)
    [setting] = [item for item in found.settings if item.differs]
    assert (setting.name, setting.values) == ("audit.gap_tokens", (2_048, 0))
    why = _why(found)
    assert list(why) == ["audit", "publish"]
    assert why["audit"] == ("settings (audit.gap_tokens)",)
    assert "inputs (audit)" in why["publish"]
    assert all(item.values[0] == item.values[1] for item in found.figures if "val_bpb" in item.name)


def test_a_run_against_itself_has_no_difference(smoke_run: Any, smoke_store: Path) -> None:
    found = _compared(smoke_store, smoke_run.report, smoke_run.report)
    assert not [item for item in (*found.settings, *found.verdicts) if item.differs]
    assert _why(found) == {}
    assert found.conclusions == ("A and B: the same run.",)


def test_a_run_by_other_code_says_so_at_the_stage_of_that_code(
    run_pipeline: Callable[..., Any], smoke_run: Any, smoke_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stage gives is the same, so the stages after it are found in the store."""
    true_digest = keys.code_digest

    def digest(roots: Iterable[str], to_the_letter: bool = False) -> str:
        changed = "stages.check_size" in (roots := tuple(roots))
        return "0" * 64 if changed else true_digest(roots, to_the_letter)

    for module in ("stages.store.keys", "stages.execution.runner"):
        monkeypatch.setattr(f"{module}.code_digest", digest)
    changed = run_pipeline(smoke_store)
    monkeypatch.undo()
    assert changed.computed[0] == "check_size"
    why = _why(_compared(smoke_store, smoke_run.report, changed.report))
    assert why.pop("check_size") == ("code",)
    assert set(why) <= {"publish"}  # the report names the code


def test_verdicts_that_changed_are_shown(smoke_run: Any, smoke_store: Path) -> None:
    report = smoke_run.report
    first, *others = report.audit.findings
    broken = report.audit.derive(findings=(first.derive(verdict="no effect"), *others))
    found = _compared(smoke_store, report, report.derive(run_id="x", audit=broken))
    [changed] = [item for item in found.verdicts if item.differs]
    assert (changed.key, changed.verdicts) == (first.key, (first.verdict, "no effect"))


def _with_score(report: PipelineReport, seed: int, bpb: float, **changes: Any) -> PipelineReport:
    """As if trained with another seed: the same records, other scores."""
    score = report.evaluation.sliding.derive(bpb=bpb)  # type: ignore[union-attr]
    train = replace(report.spec.train, seed=seed)
    return report.derive(
        run_id=f"{seed}-{bpb}",
        spec=report.spec.derive(train=train, **changes),
        evaluation=report.evaluation.derive(sliding=score),
    )


def test_several_seeds_of_both_give_welchs_interval(smoke_run: Any, smoke_store: Path) -> None:
    """The figures are Welch's by hand: difference 0.5, standard errors √(0.01/3 + 0.01/3), 4 degrees."""
    audit = smoke_run.report.spec.audit.derive(gap_tokens=1_024)
    ours = [_with_score(smoke_run.report, seed, bpb) for seed, bpb in ((1, 3.0), (2, 3.1), (3, 3.2))]
    theirs = [
        _with_score(smoke_run.report, seed, bpb, audit=audit) for seed, bpb in ((1, 3.5), (2, 3.6), (3, 3.7))
    ]
    [said] = compare_runs(Store(smoke_store), (ours[0], theirs[0]), [*ours, *theirs]).conclusions
    assert "A has 3 seeds and B has 3 seeds. B − A is +0.50000 bits per byte" in said
    low, high = map(float, re.findall(r"interval \+([\d.]+) to \+([\d.]+)", said)[0])
    half = 2.7764 * (2 * 0.01 / 3) ** 0.5
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=2e-5)
    assert said.endswith("(Welch): B is worse.")


def test_fewer_seeds_show_no_spread(smoke_run: Any, smoke_store: Path) -> None:
    audit = smoke_run.report.spec.audit.derive(gap_tokens=1_024)
    ours = [_with_score(smoke_run.report, seed, bpb) for seed, bpb in ((1, 3.0), (2, 3.1))]
    theirs = _with_score(smoke_run.report, 1, 3.5, audit=audit)
    store = Store(smoke_store)
    assert compare_runs(store, (ours[0], theirs), [ours[0], theirs]).conclusions == (
        f"A and B: {UNKNOWN_SPREAD}.",
    )
    [said] = compare_runs(store, (ours[0], theirs), [*ours, theirs]).conclusions
    assert "A has 2 seeds and B has 1 seed" in said
    assert "spread is unknown" in said
    [said] = compare_runs(store, ours, ours).conclusions
    assert "the same settings but for the seed. Over 2 seeds" in said
    assert "mean 3.05000" in said


def test_scores_over_other_texts_are_not_compared(smoke_run: Any, smoke_store: Path) -> None:
    report = smoke_run.report
    split = report.spec.tokenize.split.derive(val_fraction=0.4)
    shard = report.tokenized.val_shards[0].derive(sha256="0" * 64)
    other = report.derive(
        run_id="x",
        spec=report.spec.derive(tokenize=report.spec.tokenize.derive(split=split)),
        tokenized=report.tokenized.derive(val_shards=(shard,)),
    )
    [said] = _compared(smoke_store, report, other).conclusions
    assert "the validation texts differ" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"windows": "documents"}, "scores are of two kinds, windows of 64 tokens over the stream and "),
        (
            {"sequence_length": 32},
            "64 tokens over the stream and windows of 32 tokens over the stream, so they",
        ),
        (
            {"stride": 0, "attention_window": 64},
            "the sliding scores are of two kinds, stride 32 and attention over 64 tokens, so they do",
        ),
    ],
)
def test_scores_of_two_kinds_are_not_compared(
    smoke_run: Any, smoke_store: Path, change: dict[str, Any], said: str
) -> None:
    report = smoke_run.report
    evaluate, merge = report.spec.evaluate, report.spec.merge
    shared = {name: value for name, value in change.items() if name in ("windows", "sequence_length")}
    spec = report.spec.derive(
        evaluate=evaluate.derive(scoring=evaluate.scoring.derive(**change)),
        merge=merge.derive(scoring=merge.scoring.derive(**shared)),
    )
    other = report.derive(run_id="x", spec=spec)
    [found] = _compared(smoke_store, report, other).conclusions
    assert said in found


def test_the_page_asks_nobody_and_follows_light_and_dark(
    smoke_run: Any, other_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    html, table = tmp_path / "new" / "compared.html", tmp_path / "compared.csv"
    names = (smoke_run.report.run_id, other_run.report.run_id)
    result = fairway("compare", *names, "--html", html, "--csv", table, "--store", smoke_store)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == [f"written: {table}", f"written: {html}"]
    text = html.read_text(encoding="utf-8")
    # Names of XML namespaces are no addresses that a browser asks.
    assert re.findall(r"<(?:link|img|iframe)\b|<script .|@import|url\((?!#)", text) == []
    assert "default-src &#39;none&#39;; script-src &#39;sha256-" in text
    assert re.findall(r"(?:src|href)=[\"'](?!#)", text) == []
    assert "@media (prefers-color-scheme: dark)" in text
    drawn = text[text.index("<svg") : text.index("</svg>")]
    assert "currentColor" in drawn
    assert not re.search(r"fill: ?(?:#000000|black|#ffffff|white)\b", drawn)
    assert "audit.gap_tokens" in text
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    [setting] = [row for row in rows if row["kind"] == "setting"]
    assert setting["name"] == "audit.gap_tokens"
    [score] = [row for row in rows if row["name"] == "val_bpb quantized"]
    assert float(score[f"A {smoke_run.report.name}"]) == smoke_run.report.val_bpb_quantized


def test_json_stays_alone_on_standard_output_beside_a_file(
    smoke_run: Any, other_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    names = (smoke_run.report.run_id, other_run.report.run_id)
    table = tmp_path / "compared.csv"
    result = fairway("compare", *names, "--csv", table, "--json", "--store", smoke_store)
    assert ComparedRuns.model_validate_json(result.stdout)
    assert result.stderr.splitlines()[-1] == f"written: {table}"


def test_names_and_values_are_text_on_the_page(smoke_run: Any, smoke_store: Path) -> None:
    hostile = "<script>alert(1)</script>"
    publish = smoke_run.report.spec.publish.derive(title=hostile)
    other = smoke_run.report.derive(
        run_id="x", name=hostile, spec=smoke_run.report.spec.derive(publish=publish)
    )
    reports = (smoke_run.report, other)
    found = _compared(smoke_store, *reports)
    text = page(found, read_curves(Store(smoke_store), found, reports))
    assert hostile not in text
    assert "&lt;script&gt;" in text


def test_all_shows_what_is_equal_too(smoke_run: Any, other_run: Any, smoke_store: Path) -> None:
    names = (smoke_run.report.run_id, other_run.report.run_id, "--store", smoke_store)
    few, everything = fairway("compare", *names).stdout, fairway("compare", *names, "--all").stdout
    assert "train.seed" not in few
    assert "train.seed" in everything
    told = json.loads(fairway("compare", *names, "--json").stdout)
    assert ComparedRuns.model_validate(told) == _compared(smoke_store, smoke_run.report, other_run.report)
    assert f"Settings: 1 differ, {len(told['settings']) - 1} are equal" in few


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["last", "somke"], ["RUN = somke", "Did you mean smoke-seed1337"]),
        (["last"], ["1 named", "2 to 26"]),
        (["last"] * 27, ["27 named"]),
    ],
)
def test_bad_input_is_answered_with_one_message_and_status_2(
    names: list[str], said: list[str], smoke_run: Any, smoke_store: Path
) -> None:
    result = fairway("compare", *names, "--store", smoke_store)
    assert result.exit_code == 2
    assert all(text in result.stderr for text in said), result.stderr


def test_a_file_that_cannot_be_written_is_named(smoke_run: Any, smoke_store: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    path = tmp_path / "taken" / "x.csv"
    result = fairway("compare", "last", "last", "--csv", path, "--store", smoke_store)
    assert result.exit_code == 2
    assert f"--csv = {path}: cannot be written" in result.stderr


def test_a_record_that_is_gone_is_said_to_be_gone(smoke_run: Any, other_run: Any, smoke_store: Path) -> None:
    gone = replace_key(other_run.report, "audit", "f" * 64)
    assert _why(_compared(smoke_store, smoke_run.report, gone))["audit"] == (
        "its record is gone from the store",
    )


def replace_key(report: PipelineReport, stage: str, key: str) -> PipelineReport:
    stages = tuple(item.derive(key=key) if item.stage == stage else item for item in report.stages)
    return report.derive(run_id="gone", stages=stages)


def test_two_hundred_runs_in_the_store_are_no_hindrance(
    smoke_run: Any, other_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    """Seconds of this process's own work, which other work on the machine does not change."""
    (tmp_path / "stages").symlink_to(smoke_store / "stages")
    for index in range(200):
        run = smoke_run if index % 2 else other_run
        name = f"smoke-seed{index}-{index:08x}"
        save_report(tmp_path, run.report.derive(run_id=f"{index:032x}", name=name))
    began = time.process_time()
    result = fairway("compare", "smoke-seed1-00000001", "smoke-seed2-00000002", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    assert "audit.gap_tokens" in result.stdout
    assert time.process_time() - began < 3


def test_the_form_leaves_tables_and_a_page(
    smoke_run: Any, other_run: Any, smoke_store: Path, api: str
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    names = (smoke_run.report.run_id, other_run.report.run_id)
    found = compare(runs=names, options=RunOptions(store=str(smoke_store)))
    assert found == _compared(smoke_store, smoke_run.report, other_run.report)
    written = smoke_store / "comparisons" / f"{names[0][:8]}-{names[1][:8]}.html"
    assert "<h1>2 runs compared</h1>" in written.read_text(encoding="utf-8")
    with get_client(sync_client=True) as client:
        shown = ArtifactFilter(key=ArtifactFilterKey(any_=["compared"]))
        [artifact] = client.read_artifacts(artifact_filter=shown)
    assert "data:image/svg+xml;base64," in str(artifact.data)
    assert "audit.gap_tokens" in str(artifact.data)


def test_curves_go_over_steps_seconds_and_tokens(smoke_run: Any, smoke_store: Path) -> None:
    metrics = read_metrics(smoke_store / smoke_run.report.trained.metrics.path, CURVE_COLUMNS)
    svg = curves_svg([("A  $one$", metrics), ("B  two", metrics)], themed=False)
    for label in ("optimizer step", "seconds of training", "tokens, millions", "A  $one$", "B  two"):
        assert label in svg, label
    assert svg == curves_svg([("A  $one$", metrics), ("B  two", metrics)], themed=False)
    with pytest.raises(ValueError, match="no curve"):
        curves_svg([], themed=False)
