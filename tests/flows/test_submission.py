"""A run of `smoke` as a submission: the folder, its program run alone, its checks and its score again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from typer.testing import CliRunner, Result

from flows.cli.main import app
from flows.results.tables import run_table
from schemas.errors import SpecError
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineReport
from schemas.runtime import RunOptions
from stages.store.machine import CPU_CAPS, CPU_SWITCHES
from stages.store.runs import seeds_of
from stages.store.store import Store
from stages.submission.export import export_submission
from stages.submission.inputs import about_of, write_submission
from stages.submission.rules import check_folder

ABOUT = ("--author", "Ada Lovelace", "--github-id", "ada", "--name", "A smoke run")
WITH_WINDOW = "windows of 64 tokens over the stream; attention over 64 tokens"


def fairway(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(smoke_run: Any, smoke_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submissions") / "of smöke"
    result = fairway(
        "export",
        smoke_run.report.run_id,
        *ABOUT,
        "--out",
        folder,
        "--only-this-seed",
        "--store",
        smoke_store,
        "--json",
    )
    assert result.exit_code == 0, result.output
    assert {rule["rule"]: rule["verdict"] for rule in json.loads(result.stdout)["rules"]} == {
        rule.rule: "pass" for rule in check_folder(folder)
    }
    return folder


def run_alone(folder: Path, report: PipelineReport, store: Path, *options: str) -> dict[str, Any]:
    """The program of a package in an empty folder, under torchrun, isolated: its scores.

    The blob it made stays in `folder`.
    """
    folder.mkdir()
    (folder / "train_gpt.py").write_bytes((store / report.package.script.path).read_bytes())
    data = (store / report.tokenized.train_shards[0].path).parent
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OMP_WAIT_POLICY": "PASSIVE",
        "DATA_PATH": str(data),
    }
    # An environment of its own, on the same kind of machine.
    environment |= {name: os.environ[name] for name in (*CPU_CAPS, *CPU_SWITCHES) if name in os.environ}
    environment["TOKENIZER_PATH"] = str(store / report.tokenized.tokenizer.path)
    command = [
        sys.executable,
        "-I",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=1",
        "--no-python",
    ]
    command += [
        sys.executable,
        "-I",
        "train_gpt.py",
        "--json",
        "scores.json",
        "--log-file",
        "train.log",
        *options,
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "scores.json").read_text())


def assert_same(folder: Path, scores: dict[str, Any], report: PipelineReport, store: Path) -> None:
    assert (folder / "model.fwz").read_bytes() == (store / report.package.blob.path).read_bytes()
    for kind, score in (
        ("non_overlapping", report.evaluation.non_overlapping),
        ("sliding", report.evaluation.sliding),
    ):
        assert scores[kind]["bpb"] == score.bpb
        assert scores[kind]["nll_nats_sum"] == score.nll_nats_sum


def test_the_program_alone_makes_the_same_bytes_and_the_same_score(
    smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "empty folder"
    scores = run_alone(folder, smoke_run.report, smoke_store)
    assert_same(folder, scores, smoke_run.report, smoke_store)
    said = (folder / "train.log").read_text()
    assert smoke_run.report.package.blob.sha256 in said
    assert f"trained {smoke_run.report.trained.steps} steps" in said
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.fwz",
        "scores.json",
        "train.log",
        "train_gpt.py",
    ]


@pytest.mark.slow
def test_the_program_alone_meets_the_limit_with_the_same_bytes(
    fitted: Any, smoke_store: Path, tmp_path: Path
) -> None:
    """It trains on its own, calibrates on the same text and fits the same steps; its code's bytes it
    counts itself.
    """
    folder = tmp_path / "empty"
    scores = run_alone(folder, fitted.report, smoke_store, "--stride", "0")
    assert (folder / "model.fwz").read_bytes() == (smoke_store / fitted.report.package.blob.path).read_bytes()
    assert scores["non_overlapping"]["bpb"] == fitted.report.val_bpb_quantized
    shipped = (folder / "model.fwz").stat().st_size + (folder / "train_gpt.py").stat().st_size
    assert 0.999 * fitted.limit_bytes <= shipped <= fitted.limit_bytes


@pytest.mark.slow
def test_another_seed_is_another_model(smoke_run: Any, smoke_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seed 7"
    run_alone(folder, smoke_run.report, smoke_store, "--seed", "7", "--stride", "0")
    assert (folder / "model.fwz").read_bytes() != (
        smoke_store / smoke_run.report.package.blob.path
    ).read_bytes()


def test_the_program_refuses_missing_data_before_it_trains(
    smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    script, shards = tmp_path / "train_gpt.py", smoke_store / smoke_run.report.tokenized.train_shards[0].path
    script.write_bytes((smoke_store / smoke_run.report.package.script.path).read_bytes())
    for options, named in (
        (["--train", str(shards)], "--val"),
        (["--train", str(shards), "--val", str(shards)], "tokenizer"),
    ):
        done = subprocess.run(
            [sys.executable, "-I", str(script), *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1
        assert named in done.stderr
        assert "step 1/" not in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_program_alone_makes_the_demos_bytes(run_pipeline: Callable[..., Any], tmp_path: Path) -> None:
    store = tmp_path / "store"
    report = run_pipeline(store, preset="demo").report
    scores = run_alone(tmp_path / "empty", report, store)
    assert_same(tmp_path / "empty", scores, report, store)


def test_the_folder_has_the_official_shape_and_its_figures_are_the_records(
    exported: Path, smoke_run: Any
) -> None:
    report, info = smoke_run.report, json.loads((exported / "submission.json").read_text())
    names = [
        "README.md",
        "model.fwz",
        "requirements.txt",
        "run.toml",
        "submission.json",
        "train_gpt.py",
        "train_seed1337.log",
    ]
    assert sorted(path.name for path in exported.iterdir()) == names
    assert info["val_bpb"] == round(report.evaluation.sliding.bpb, 8)
    assert info["val_loss"] == round(report.evaluation.sliding.loss, 8)
    assert info["pre_quant_val_bpb"] == round(report.val_bpb_merged, 8)
    assert (
        info["bytes_total"]
        == sum((exported / name).stat().st_size for name in ("train_gpt.py", "model.fwz"))
        == report.size.total_bytes
    )
    assert (info["author"], info["github_id"], info["name"], info["seeds"]) == (
        "Ada Lovelace",
        "ada",
        "A smoke run",
        [1337],
    )
    log = (exported / "train_seed1337.log").read_text()
    for text in (
        "train.seed = 1337",
        "step 40/40 (100%)",
        report.package.blob.sha256,
        f"val_bpb_sliding {report.evaluation.sliding.bpb:.8f}",
    ):
        assert text in log
    readme = (exported / "README.md").read_text()
    for text in (
        "torchrun --standalone --nproc_per_node=1",
        "late QAT",
        "shared value embedding",
        "| bytes as shipped | pass |",
    ):
        assert text in readme


def test_a_changed_figure_or_file_is_found(exported: Path, tmp_path: Path) -> None:
    import shutil

    def verdicts(name: str, old: str, new: str) -> set[str]:
        copy = tmp_path / f"{name} {len(list(tmp_path.iterdir()))}"
        shutil.copytree(exported, copy)
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new))
        return {rule.rule for rule in check_folder(copy) if rule.verdict == "fail"}

    info = json.loads((exported / "submission.json").read_text())
    val_bpb = str(info["val_bpb"])
    assert verdicts("README.md", f"| `val_bpb` | {val_bpb} |", "| `val_bpb` | 1.1 |") == {"README's figures"}
    assert verdicts("submission.json", f'"bytes_total": {info["bytes_total"]},', '"bytes_total": 17,') >= {
        "bytes as declared"
    }
    assert verdicts("submission.json", f'"val_bpb": {val_bpb},\n  "pre', '"val_bpb": 1.25,\n  "pre') >= {
        "seeds",
        "README's figures",
    }
    assert verdicts("train_gpt.py", "import argparse", "import argparse\nimport requests") == {
        "no network",
        "bytes as declared",
        "bytes as shipped",
    } - {"bytes as shipped"}
    assert verdicts(
        "train_seed1337.log", "trained 40 steps in", "trained 40 steps in 601.5 s; trained 40 steps in"
    ) == {"training time"}


def test_an_exported_folder_is_scored_again_to_the_same_digits(
    exported: Path, smoke_run: Any, smoke_store: Path
) -> None:
    shards = (smoke_store / smoke_run.report.tokenized.val_shards[0].path).parent / "fineweb_val_*.bin"
    result = fairway("rescore", exported, "--shards", shards, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["val_bpb_non_overlapping"] == smoke_run.report.val_bpb_quantized
    assert told["val_bpb_sliding"] == smoke_run.report.val_bpb_quantized_sliding
    assert told["claimed_val_bpb"] == round(told["val_bpb_sliding"], 8)
    assert told["scored_by"] == "fairway"
    assert told["precision"].startswith(smoke_run.report.spec.evaluate.compute.precision)
    claimed = json.loads((exported / "submission.json").read_text())
    assert (
        claimed["eval_batch_tokens"] == smoke_run.report.spec.evaluate.scoring.batch_tokens
    )  # last digits depend on it


def test_an_attention_window_takes_the_place_of_sliding_windows(
    run_pipeline: Any, smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    """Run, tables, audit, submission folder and its second score, by our program and by the folder's own."""
    asked = ("evaluate.scoring.stride=0", "evaluate.scoring.attention_window=64")
    report = run_pipeline(smoke_store, *asked).report
    before, here = smoke_run.report, report.evaluation
    assert here.non_overlapping.bpb == before.evaluation.non_overlapping.bpb
    assert here.sliding is not None
    assert here.sliding.num_targets == before.evaluation.sliding.num_targets
    assert here.sliding.bpb == pytest.approx(before.evaluation.sliding.bpb, abs=0.005)
    found = {finding.key: finding for finding in report.audit.findings}
    assert found["sliding"].verdict == "off"
    assert found["attention-window"].verdict == "took effect"
    assert found["attention-window"].evidence.startswith("attention over 64 tokens: ")
    shown = {row["figure"]: row["note"] for row in run_table(report).dicts()}
    assert shown["val_bpb quantized, sliding"] == "attention over 64 tokens"

    folder = tmp_path / "folder"
    to = ("--out", folder, "--only-this-seed", "--store", smoke_store)
    assert fairway("export", report.run_id, *ABOUT, *to).exit_code == 0
    shards = (smoke_store / report.tokenized.val_shards[0].path).parent / "fineweb_val_*.bin"
    for script in ((), ("--run-its-script",)):
        again = fairway("rescore", folder, "--shards", shards, "--json", *script)
        told = json.loads(again.stdout)
        assert told["val_bpb_sliding"] == here.sliding.bpb
        assert told["scored_with"] == told["claimed_with"] == WITH_WINDOW
    by_windows = fairway("rescore", folder, "--shards", shards, "--json", "--run-its-script", "--stride", 32)
    assert json.loads(by_windows.stdout)["val_bpb_sliding"] == before.evaluation.sliding.bpb
    shown = fairway("rescore", folder, "--shards", shards, "--stride", 32).stdout
    assert "windows of 64 tokens over the stream; stride 32" in shown
    assert f"The claim is for {WITH_WINDOW}: the difference is one of two kinds of score." in shown
    assert f"`val_bpb` is scored with {WITH_WINDOW}." in (folder / "README.md").read_text()
    assert "attention over 64 tokens, in" in (folder / "train_seed1337.log").read_text()


def test_rescore_does_not_run_the_folders_script_unless_told(
    exported: Path, smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "stranger"
    shutil.copytree(exported, copy)
    (copy / "train_gpt.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    shards = (smoke_store / smoke_run.report.tokenized.val_shards[0].path).parent / "fineweb_val_*.bin"
    assert fairway("rescore", copy, "--shards", shards, "--stride", "0", "--json").exit_code == 0
    assert fairway("check", copy).exit_code == 1
    assert not (tmp_path / "owned").exists()
    told = fairway("rescore", copy, "--shards", shards, "--run-its-script")
    assert (tmp_path / "owned").exists()
    assert told.exit_code == 1
    assert "left no scores" in told.stderr


def test_the_other_seeds_of_the_same_settings_and_code_are_in_the_folder(
    smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    store, report = Store(smoke_store), smoke_run.report

    def with_settings(*settings: str) -> PipelineReport:
        return report.derive(spec=apply_overrides(report.spec, list(settings)), run_id=str(settings))

    seven, seven_again = (
        with_settings("train.seed=7"),
        with_settings("train.seed=7", "train.model.vocab_size=320"),
    )
    others = [
        with_settings("train.seed=8", "train.schedule.max_steps=41"),
        seven,
        seven_again,
        with_settings("train.seed=1337"),
    ]
    stages = tuple(stage.derive(key="0" * 64) if stage.stage == "train" else stage for stage in report.stages)
    others.append(with_settings("train.seed=9").derive(stages=stages))  # its record is not in the store
    found = seeds_of(store, report, others)
    assert [(item.spec.train.seed, item.run_id) for item in found] == [
        (1337, report.run_id),
        (7, seven_again.run_id),
    ]
    made = export_submission(store, found, about_of("Ada", "ada", "Two seeds", ""), tmp_path / "two")
    assert made.info.seeds == (7, 1337)
    assert made.info.val_bpb == round(report.evaluation.sliding.bpb, 8)
    assert (tmp_path / "two" / "train_seed7.log").is_file()
    assert all(rule.verdict == "pass" for rule in made.rules), made.rules


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["export", "nothing", *ABOUT], ["nothing", "no such run"]),
        (
            ["export", "last", "--author", "A\nB", *ABOUT[2:]],
            ["--author = 'A\\nB': must be one line, without control characters"],
        ),
        (
            ["export", "last", *ABOUT[:2], "--github-id", "a b", *ABOUT[4:]],
            ["--github-id = 'a b': must be letters, digits and hyphens, at most 39"],
        ),
        (["export", "last", *ABOUT, "--out", "/"], ["--out", "there already"]),
        (["check", "/nothing"], ["FOLDER", "/nothing"]),
        (["rescore", "/nothing", "--shards", "/nothing/*"], ["--shards", "no file matches"]),
        (["rescore", "/nothing", "--shards", "/etc/passwd"], ["--tokenizer"]),
        (
            ["rescore", "/nothing", "--shards", "/etc/passwd", "--tokenizer", "/etc/passwd"],
            ["FOLDER", "/nothing"],
        ),
        (
            ["rescore", "/tmp", "--shards", "/etc/passwd", "--tokenizer", "/x", "--device", "tpu"],
            ["--device", "cuda"],
        ),
        (
            ["rescore", "/tmp", "--shards", "/etc/passwd", "--tokenizer", "/x", "--stride", "-1"],
            ["stride", "-1", "at least 0"],
        ),
    ],
)
def test_bad_input_is_answered_with_one_message_and_status_2(
    arguments: list[str], named: list[str], smoke_run: Any, smoke_store: Path
) -> None:
    result = fairway(*arguments, *(["--store", smoke_store] if arguments[0] == "export" else []))
    assert result.exit_code == 2, result.output
    assert all(text in result.stderr for text in named), result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["export", "check", "rescore"])
def test_every_command_has_help_and_takes_json(command: str) -> None:
    result = fairway(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output


def test_a_run_whose_files_are_gone_is_not_exported(
    smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    script = smoke_store / smoke_run.report.package.script.path
    content = script.read_bytes()
    script.write_bytes(content + b"#")
    try:
        with pytest.raises(SpecError, match=r"train_gpt\.py .*Run the pipeline"):
            write_submission(
                Store(smoke_store),
                smoke_run.report.run_id,
                about_of("A", "a", "N", ""),
                tmp_path / "out",
                True,
            )
    finally:
        script.write_bytes(content)
    assert list(tmp_path.iterdir()) == []


def test_the_deployments_flow_writes_the_folder_and_shows_the_rules(
    api: str, smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    from flows.export import export

    options = RunOptions(store=str(smoke_store))
    given = {
        "run": smoke_run.report.run_id,
        "folder": str(tmp_path / "out"),
        "only_this_seed": True,
        "options": options,
    }
    state = export("Ada", "ada", "From a form", **given, return_state=True)
    assert state.is_completed()
    assert Path(state.result()) == tmp_path / "out"
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    by_key = {artifact.key: str(artifact.data) for artifact in artifacts}
    assert set(by_key) == {"submission", "submission-rules"}
    assert "bytes as shipped" in by_key["submission-rules"]
    assert "# From a form" in by_key["submission"]
