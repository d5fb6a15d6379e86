"""The command line: figures, errors, JSON."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli.main import app
from stages.store.machine import CPU_CAPS

HEAVY = {
    "torch",
    "prefect",
    "pydantic",
    "numpy",
    "matplotlib",
    "pyarrow",
    "rich.table",
    "schemas.settings_base",  # all modules of settings import it
}


def fairway(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_needs_nothing_heavy() -> None:
    code = "import sys, flows.cli.main; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not HEAVY & set(loaded)


def test_the_version_is_the_installed_one() -> None:
    assert fairway("--version").stdout == f"fairway {version('fairway-lm')}\n"


def test_completion_knows_commands_and_their_options() -> None:
    """What a shell asks; the options of `requantize` come from a model that is read on demand."""
    for words, known in (("fairway requ", "requantize"), ("fairway requantize --bi", "--bits")):
        asked = {"_FAIRWAY_COMPLETE": "complete_bash", "COMP_WORDS": words}
        environment = os.environ | asked | {"COMP_CWORD": str(len(words.split()) - 1)}
        command = [sys.executable, "-c", "from flows.cli.main import app; app(prog_name='fairway')"]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert answer.stdout.split() == [known]


@pytest.mark.parametrize(
    "command", ["run", "plan", "requantize", "frontier", "validate-seeds", "up", "describe", "show", "runs"]
)
def test_every_command_has_help_and_takes_json(command: str) -> None:
    result = fairway(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output


@pytest.mark.parametrize(("preset", "parameters"), [("reference", 25_224_291), ("record", 25_224_282)])
def test_describe_counts_the_references_parameters(preset: str, parameters: int) -> None:
    told = json.loads(fairway("describe", preset, "--json").stdout)
    assert told["parameters"] == parameters
    assert sum(told["parameters_by_part"].values()) == parameters
    assert len(told["idle_parameters"]) == (9 if preset == "reference" else 0)


def test_describe_lists_every_setting_with_unit_and_bounds() -> None:
    from flows.inputs.specs import resolve
    from schemas.introspect import describe_fields

    told = json.loads(fairway("describe", "demo", "--json").stdout)
    assert [item["name"] for item in told["settings"]] == [
        info.name for info in describe_fields(resolve("demo", []))
    ]
    steps = next(item for item in told["settings"] if item["name"] == "train.schedule.max_steps")
    assert (steps["unit"], steps["bounds"]) == ("steps", "at least 1")
    assert told["max_tokens"] == told["max_steps"] * told["batch_tokens"]
    assert told["estimated_artifact_bytes"] == told["estimated_blob_bytes"] + told["code_bytes"]


def test_describe_follows_overrides_and_short_options() -> None:
    told = json.loads(
        fairway(
            "describe", "demo", "--seed", 7, "--processes", 2, "--set", "train.schedule.max_steps=5", "--json"
        ).stdout
    )
    values = {item["name"]: item["value"] for item in told["settings"]}
    assert values["train.seed"] == 7
    assert values["train.schedule.max_steps"] == told["max_steps"] == 5
    assert [values[f"{section}.compute.num_processes"] for section in ("train", "merge", "evaluate")] == [
        2,
        2,
        2,
    ]


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("avx2 fma", "float32"), ("fma avx512f avx512bw avx512vl avx512dq avx512_bf16", "bfloat16")],
)
def test_describe_says_the_precision_and_why(
    monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    for name in CPU_CAPS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("stages.store.machine._cpuinfo", lambda: f"flags : {flags}\n")
    told = json.loads(fairway("describe", "demo", "--json").stdout)
    assert told["precision"] == precision
    values = {item["name"]: item["value"] for item in told["settings"]}
    assert {values[f"{section}.compute.precision"] for section in ("train", "merge", "evaluate")} == {
        precision
    }
    why = told["precision_note"].partition(": ")[2]
    assert why.startswith("this CPU (AVX")
    assert why in " ".join(fairway("describe", "demo").stdout.split())


def test_describe_for_people_names_parts_and_limit() -> None:
    output = fairway("describe", "reference").stdout
    for text in (
        "25,224,291",
        "idle parameters",
        "frozen parameters",
        "16,000,000",
        "train.schedule.max_steps",
    ):
        assert text in output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "--preset", "dmeo"], ["preset", "dmeo", "demo"]),
        (["run", "--preset", "smoke", "--set", "quantize.methd=x"], ["quantize.methd", "quantize.method"]),
        (["run", "--preset", "smoke", "--set", "train.seed=-1"], ["train.seed", "-1", "at least 0"]),
        (["run", "--preset", "smoke", "--set", "nonsense"], ["nonsense", "dotted.name=value"]),
        (["run", "--preset", "smoke", "--processes", "99"], ["num_processes", "99", "at most 8"]),
        (
            ["run", "--preset", "smoke", "--launcher", "slurm"],
            ["--launcher slurm", "num_nodes = 1", "--nodes"],
        ),
        (["run", "--preset", "smoke", "--nodes", "3"], ["batch_tokens", "num_nodes = 3", "num_processes"]),
        (
            ["run", "--preset", "smoke", "--set", "merge.compute.num_nodes=2"],
            ["num_nodes = 2", "only training"],
        ),
        (["run", "--preset", "smoke", "--device", "tpu"], ["device", "tpu", "cuda"]),
        (["run", "--preset", "smoke", "--retries", "-1"], ["retries", "-1"]),
        (["run", "--preset", "smoke", "--timeout", "0"], ["timeout", "0"]),
        (["describe", "demo", "--set", "train.model.num_heads=7"], ["model_dim", "num_heads"]),
        (["validate-seeds", "--preset", "dmeo"], ["preset", "dmeo", "demo"]),
        (["run", "--like", "nothing"], ["nothing", "no finished run"]),
    ],
)
def test_bad_input_is_answered_with_one_message_and_status_2(
    arguments: list[str], named: list[str], tmp_path: Path
) -> None:
    where = [] if arguments[0] == "describe" else ["--store", tmp_path]
    result = fairway(*arguments, *where)
    assert result.exit_code == 2
    assert all(text in result.stderr for text in named), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


OF_A_STORE = [
    ["verify"],
    ["gc", "--remove"],
    ["runs"],
    ["runs", "--curves", "--csv", "curves.csv"],
    ["show"],
    ["compare", "last", "last"],
    ["watch", "--once"],
    ["watch", "last"],
    ["note", "last"],
    ["tag", "last", "good"],
    ["pin", "last"],
    ["forget", "last"],
    ["sample"],
    ["benchmark", "--tasks", "piqa"],
    ["export", "--author", "a", "--github-id", "a", "--name", "a"],
    ["export-hf"],
    ["requantize"],
    ["frontier"],
    ["ablate"],
]
"""Commands that read a store or change its runs, and make none."""


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("command", OF_A_STORE, ids=" ".join)
def test_a_folder_that_is_no_store_is_refused_and_left_as_it_is(
    command: list[str], there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.benchmark.require_harness", lambda: None)
    folder = tmp_path / "texts"
    if there:
        folder.mkdir()
        (folder / "book.txt").write_text("text")
    result = fairway(*command, "--store", "texts")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--store texts: there is no store" in result.stderr
    assert "FAIRWAY_STORE" in result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == (["texts", "book.txt"] if there else [])


@pytest.mark.parametrize("command", OF_A_STORE, ids=" ".join)
def test_before_the_first_run_the_default_store_is_empty_and_not_made(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAIRWAY_STORE", raising=False)
    monkeypatch.setattr("stages.benchmark.require_harness", lambda: None)
    result = fairway(*command)
    friendly = ("`fairway run` makes one", "no training is in progress", "0 in all", "Runs")
    assert any(text in result.output for text in friendly), result.output
    assert "there is no store in" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["run", "--preset", "smoke"], ["validate-seeds"], ["plan"], ["sweep"]])
def test_a_store_is_not_made_among_other_files(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("text")
    more = ["--vary", "train.schedule.max_steps=4,5"] if command == ["sweep"] else []
    result = fairway(*command, *more, "--store", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "holds other files (book.txt)" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["book.txt"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["requantize", "RUN", "--bits", "int9"], "--bits int9: must be one of"),
        (["requantize", "RUN", "--method", "ecqs"], "Did you mean ecsq?"),
        (["requantize", "RUN", "--set", "quantize.methd=x"], "quantize.methd"),
        (["requantize", "RUN", "--limit-bytes", "1000"], "the script alone has"),
        (["validate-seeds", "--preset", "smoke", "--mark", "-1"], "--mark -1.0: must be above 0"),
        (["run", "--preset", "smoke", "--stop-behind", "nope:0.1"], "--stop-behind nope:0.1: RUN = nope"),
        (["run", "--preset", "record"], "corpus.folder"),
        (["sweep", "--preset", "record", "--vary", "train.seed=1,2"], "vary = train.seed"),
        (["ablate", "RUN", "--off", "xxx"], "--off xxx"),
        (["frontier", "RUN", "--retries", "0", "--scheme", "gptq:int9"], "scheme = gptq:int9"),
    ],
)
def test_what_a_flow_would_refuse_is_refused_before_a_server_starts(
    arguments: list[str],
    named: str,
    smoke_run: Any,
    smoke_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.server.environment.prefect_api", lambda *_: pytest.fail("a server starts"))
    given = [smoke_run.report.run_id if item == "RUN" else item for item in arguments]
    result = fairway(*given, "--store", smoke_store)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert named in result.stderr


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    result = fairway("run", "--preset", "smoke", "--store", taken)
    assert result.exit_code == 2
    assert "--store" in result.stderr


def test_debug_lets_the_stack_trace_through(tmp_path: Path) -> None:
    assert fairway("run", "--preset", "dmeo", "--store", tmp_path, "--debug").exception is not None
    assert (
        type(fairway("run", "--preset", "dmeo", "--store", tmp_path, "--debug").exception).__name__
        == "SpecError"
    )


def test_run_gives_pure_json_and_says_the_rest_on_standard_error(smoke_run: Any, smoke_store: Path) -> None:
    """By the run file that lies beside the report: the same run, so every stage is stored."""
    run_file = smoke_store / "runs" / smoke_run.report.run_id / "run.toml"
    result = fairway("run", run_file, "--store", smoke_store, "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["name"] == smoke_run.report.name
    assert told["val_bpb_quantized"] == smoke_run.report.val_bpb_quantized
    assert len(told["cached_stages"]) == 9
    assert Path(told["report_html"]).is_file()
    assert "found in the store" in result.stderr


def test_run_ends_with_the_table(smoke_run: Any, smoke_store: Path) -> None:
    output = fairway("run", "--like", smoke_run.report.run_id, "--store", smoke_store).stdout
    report = smoke_run.report
    sliding = f"{report.val_bpb_quantized_sliding:.5f}"
    for figure in (
        f"{report.val_bpb_last:.5f}",
        f"{report.val_bpb_merged:.5f}",
        f"{report.val_bpb_quantized:.5f}",
        sliding,
    ):
        assert figure in output
    for text in (
        "zstd -22",
        "xz -9",
        f"{report.size.total_bytes:,}",
        "16,000,000",
        "34,887",
        "Cached",
        "report.html",
    ):
        assert text in output


def test_a_run_over_the_limit_shows_its_table_and_fails(over_limit: Any, smoke_store: Path) -> None:
    """Also where all of its stages are stored."""
    limit = f"check_size.limit_bytes={over_limit.report.size.limit_bytes}"
    result = fairway("run", "--preset", "smoke", "--store", smoke_store, "--set", limit, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["fits"] is False
    assert "over the limit by" in result.stderr


@pytest.mark.parametrize("wanted", ["last", "whole id", "start of the id"])
def test_show_finds_a_run(wanted: str, smoke_run: Any, smoke_store: Path) -> None:
    run_id = smoke_run.report.run_id
    argument = {"last": "last", "whole id": run_id, "start of the id": run_id[:8]}[wanted]
    told = json.loads(fairway("show", argument, "--store", smoke_store, "--json").stdout)
    assert told["report"]["preset"] == "smoke"
    if wanted != "last":
        assert told["run_id"] == run_id
        assert told["val_bpb_quantized"] == smoke_run.report.val_bpb_quantized


def test_runs_lists_every_finished_run(smoke_run: Any, smoke_store: Path) -> None:
    listed = json.loads(fairway("runs", "--store", smoke_store, "--json").stdout)
    assert smoke_run.report.run_id in [entry["run_id"] for entry in listed]
    assert smoke_run.report.name in fairway("runs", "--store", smoke_store).stdout


def test_run_files_lie_beside_report_page_and_package(smoke_run: Any, smoke_store: Path) -> None:
    """The folder of the package itself holds only what counts against the limit."""
    report = smoke_run.report
    package = smoke_store / report.package.folder
    text = (smoke_store / "runs" / report.run_id / "run.toml").read_text(encoding="utf-8")
    assert text == f'# The run {report.name}\npreset = "smoke"\n'
    assert (smoke_store / report.published.html.path).with_name("run.toml").is_file()
    assert (package.parent / "run.toml").is_file()
    assert sorted(path.name for path in package.iterdir()) == ["model.fwz", "train_gpt.py"]


def test_describe_writes_a_run_file_and_reads_it(tmp_path: Path) -> None:
    changed = ("smoke", "--set", "train.seed=7", "--set", "quantize.method=gptq")
    path = tmp_path / "my.toml"
    path.write_text(fairway("describe", *changed, "--toml").stdout, encoding="utf-8")
    told = [json.loads(fairway("describe", *given, "--json").stdout) for given in ((path,), changed)]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("books/1.txt", "books/2.txt", "--preset", "demo"), "needs quotes: --text 'books/*.txt'"),
        (("books/1.txt",), "needs quotes: --text 'books/*.txt'"),
        (("demo",), "FILE = demo: is the name of a preset. Write --preset demo"),
        (("my.toml", "--preset", "demo"), "FILE and --preset: each names what the run starts from"),
        (("--like", "last", "--preset", "demo"), "--preset and --like: each names"),
        (("--like", "last"), "holds no finished run"),
        (("my.toml",), "my.toml: there is no such file. `fairway describe demo --toml > my.toml` writes one"),
        (("--text", "books/*.txt"), "tokenize.corpus.paths = books/*.txt: matches no file"),
    ],
)
def test_run_says_what_is_wrong_with_what_it_starts_from(
    arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fairway("run", *arguments, "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert named in result.stderr


def test_schema_is_json_for_editors() -> None:
    told = json.loads(fairway("schema").stdout)
    assert told["required"] == ["preset"]
