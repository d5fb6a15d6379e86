"""Benchmarks of a run: by form and command, stored, shown, kept and forgotten with the run.

The process with lm-evaluation-harness is replaced here, but for the slow test; it has tests of its own.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import stages.benchmark as stage
from flows.benchmark import benchmark
from flows.cli.main import app
from schemas.benchmark import Benchmark, Metric, TaskScore
from schemas.errors import SpecError
from schemas.runtime import RunOptions
from stages.benchmarking.job import BenchmarkJob
from stages.store import keys
from stages.store.benchmarks import benchmarks_of
from stages.store.housekeeping import find_damage, find_forgotten, find_unneeded
from stages.store.runs import list_reports, save_report
from stages.store.store import Store

FIGURE = Metric(name="acc", filter="none", value=0.25, stderr=0.0625, higher_is_better=True)


def fairway(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BenchmarkJob]:
    """The jobs that the process would have got; each is answered with one figure for each task."""
    jobs = list[BenchmarkJob]()

    def answer(module: str, job: BenchmarkJob, *others: Any) -> Benchmark:
        jobs.append(job)
        counts = {"num_fewshot": job.spec.num_fewshot, "num_documents": job.spec.limit, "num_available": 90}
        scores = (TaskScore(task=name, version="1", metrics=(FIGURE,), **counts) for name in job.spec.tasks)
        return Benchmark(
            weights=job.weights, harness="0", limit=job.spec.limit, scores=tuple(scores), seconds=1.0
        )

    monkeypatch.setattr(stage, "launch_module", answer)
    monkeypatch.setattr(stage, "require_harness", lambda: None)
    return jobs


def test_a_form_measures_once_and_show_tells(smoke_run: Any, root: Path, asked: list[BenchmarkJob]) -> None:
    form: dict[str, Any] = {"limit": 30, "num_fewshot": 2, "options": RunOptions(store=str(root), retries=0)}
    first = benchmark(tasks=("hellaswag", " lambada_openai "), run="last", **form)
    again = benchmark(tasks=("hellaswag", "lambada_openai"), run=smoke_run.report.name, **form)
    merged = benchmark(tasks=("hellaswag",), weights="merged", **form)
    assert again == first
    assert [job.spec.tasks for job in asked] == [("hellaswag", "lambada_openai"), ("hellaswag",)]
    assert [job.file.name for job in asked] == ["model.fwz", smoke_run.report.merged.weights.name]
    scoring = smoke_run.report.spec.evaluate.scoring
    assert asked[0].spec.sequence_length == scoring.sequence_length
    told = json.loads(fairway("show", "last", "--store", root, "--json").stdout)["benchmarks"]
    assert {Benchmark.model_validate(item).weights for item in told} == {"packed", "merged"}
    assert first in [Benchmark.model_validate(item) for item in told]
    assert merged.weights == "merged"
    shown = fairway("show", "last", "--store", root).stdout
    assert "Benchmarks, packed weights" in shown
    assert all(text in shown for text in ("lambada_openai", "30 of 90", "0.25000", "0.06250", "higher"))


def test_figures_stay_with_the_run_and_go_with_it(root: Path, asked: list[BenchmarkJob]) -> None:
    benchmark(tasks=("hellaswag",), options=RunOptions(store=str(root)))
    [folder] = root.glob("stages/benchmark/*")
    store = Store(root)
    [report] = list_reports(root)
    assert list(find_damage(store)) == []
    assert folder not in [item.path for item in find_unneeded(store, older_than_hours=0)]
    assert folder in [item.path for item in find_forgotten(store, [report])]
    save_report(root, report.derive(run_id="other"))  # another run with the same model
    assert folder not in [item.path for item in find_forgotten(store, [report])]
    assert folder in [item.path for item in find_unneeded(store, keep_runs=0, older_than_hours=0)]
    (folder / "record.json").write_text("{}", encoding="utf-8")
    assert any(str(folder) in problem for problem in find_damage(store))


def test_only_the_newest_answer_to_a_question_is_shown(
    root: Path, asked: list[BenchmarkJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RunOptions(store=str(root))
    benchmark(tasks=("hellaswag",), options=options)
    monkeypatch.setattr(keys, "library_versions", lambda *given: {"lm_eval": "9"})
    benchmark(tasks=("hellaswag",), options=options)
    benchmark(tasks=("hellaswag",), limit=5, options=options)
    [report] = list_reports(root)
    assert len(list(root.glob("stages/benchmark/*"))) == len(asked) == 3
    assert [found.limit for found in benchmarks_of(root, report)] == [None, 5]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["tasks: none given", "hellaswag,lambada_openai"]),
        (["--tasks", "a b"], ["tasks", "a b"]),
        (["--tasks", "x", "--limit", "0"], ["limit = 0"]),
        (["--tasks", "x", "--num-fewshot", "-1"], ["num_fewshot = -1"]),
        (["--tasks", "x", "--weights", "int6"], ["--weights = int6", "packed or merged"]),
        (["--tasks", "x", "--include-path", "nowhere"], ["include_path = nowhere", "no such folder"]),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    arguments: list[str], named: list[str], root: Path, asked: list[BenchmarkJob]
) -> None:
    result = fairway("benchmark", "last", *arguments, "--store", root)
    assert result.exit_code == 2
    assert all(text in result.stderr for text in named), result.stderr
    assert "Traceback" not in result.output
    assert "Prefect server" not in result.output
    assert asked == []


def test_without_the_library_its_install_command_is_the_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.extras.find_spec", lambda name: None)
    result = fairway("benchmark", "last", "--tasks", "hellaswag", "--store", root)
    assert result.exit_code == 2
    assert "-m pip install 'lm-eval>=" in result.stderr


@pytest.mark.slow
def test_a_local_task_on_the_validation_text_gives_our_bits_per_byte(
    smoke_run: Any, root: Path, tmp_path: Path
) -> None:
    """By the harness itself, in the stage's own process."""
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    from stages.core.loader import TokenStream
    from stages.sampling.of_run import tokenizer_of_run

    report, options = smoke_run.report, RunOptions(store=str(root), retries=0)
    stream = TokenStream([root / ref.path for ref in report.tokenized.val_shards])
    pieces, _ = tokenizer_of_run(Store(root), report)
    bos, *ids = (int(item) for item in stream.read(0, len(stream)))
    assert bos not in ids, "the validation split of smoke is one document"
    own = tmp_path / "own"
    own.mkdir()
    (own / "validation.jsonl").write_text(json.dumps({"page": pieces.decode(ids)}), encoding="utf-8")
    (own / "validation.yaml").write_text(
        "task: validation\ndataset_path: json\ndataset_kwargs: {data_files: {test: validation.jsonl}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{page}}'\nmetric_list: [{metric: bits_per_byte}]\n",
        encoding="utf-8",
    )
    for weights, expected in (("packed", report.val_bpb_quantized), ("merged", report.val_bpb_merged)):
        found = benchmark(
            tasks=("validation",),
            weights=weights,
            include_path=str(own),
            options=options,  # type: ignore[arg-type]
        )
        [metric] = found.scores[0].metrics
        assert metric.value == pytest.approx(expected, abs=1e-4)
    with pytest.raises(SpecError, match=r"tasks = validatoin: .*has validation"):
        benchmark(tasks=("validatoin",), include_path=str(own), options=options)
