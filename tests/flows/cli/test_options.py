"""The options of commands come from the models, and only when a command is asked for them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.cli.base import DEFAULT_STORE
from flows.cli.main import app
from flows.cli.options import ANY_STAGE, TRAINING
from presets import PRESETS
from schemas.runtime import RunOptions

OPTION_OF = {
    "store": "--store",
    "remote": "--remote",
    "retries": "--retries",
    "stage_timeout_seconds": "--timeout",
    "checkpoint_every_seconds": "--checkpoint-every",
    "validate_every": "--validate-every",
    "validate_tokens": "--validate-tokens",
    "stop_if": "--stop-if",
    "stop_behind": "--stop-behind",
}
COMMANDS = {
    "run": TRAINING,
    "ablate": TRAINING,
    "validate-seeds": TRAINING,
    "requantize": ANY_STAGE,
    "frontier": ANY_STAGE,
}


def parameters(command: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return {item.opts[0]: item for item in group.commands[command].params}


@pytest.mark.parametrize("command", COMMANDS)
def test_run_options_are_options_with_their_defaults_and_words(command: str) -> None:
    shown = parameters(command)
    for field, option in OPTION_OF.items():
        assert (option in shown) is (field in COMMANDS[command])
        if option in shown:
            default = RunOptions.model_fields[field].default
            assert shown[option].default == (Path(default) if field == "store" else default)
            assert (RunOptions.model_fields[field].description or "").startswith(shown[option].help)
    assert list(shown)[-2:] == ["--json", "--debug"]


def test_the_store_of_commands_that_run_nothing_is_that_of_the_model() -> None:
    shown = parameters("gc")["--store"]
    assert (str(DEFAULT_STORE), shown.help) == (
        RunOptions().store,
        RunOptions.model_fields["store"].description,
    )


@pytest.mark.parametrize(
    ("command", "name"), [("run", "--preset"), ("validate-seeds", "--preset"), ("describe", "preset")]
)
def test_a_preset_is_chosen_of_those_there_are(command: str, name: str) -> None:
    assert parameters(command)[name].help.replace(" or ", ", ").split(", ") == list(PRESETS)


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("--retries", "21", "must be at most 20"),
        ("--checkpoint-every", "0.0", "must be above 0"),
        ("--validate-every", "5", "'5' is no share of the run: give one from 0.1% to 100%"),
        ("--stop-if", "val_bpb at 20%", "'val_bpb at 20%' is no rule: write one as 'val_bpb > 2.4 at 20%'"),
        ("--stop-behind", "last", "'last': write RUN:MARGIN"),
        ("--engine", "dsk", "must be threads, dask:HOST:PORT"),
    ],
)
def test_the_models_bounds_are_the_options(option: str, value: str, bound: str, tmp_path: Path) -> None:
    asked = ["run", "--preset", "smoke", "--store", str(tmp_path), option, value]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert f"{option} = {value}: {bound}" in result.stderr


def test_a_preset_that_is_none_makes_no_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert CliRunner().invoke(app, ["run", "--preset", "dmeo", "--store", str(store)]).exit_code == 2
    assert not store.exists()


@pytest.mark.parametrize(
    ("words", "completed"),
    [("fairway req", ["requantize"]), ("fairway run --che", ["--checkpoint-every"])],
)
def test_a_shell_completes_commands_and_options(words: str, completed: list[str]) -> None:
    asked = {
        "_FAIRWAY_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    assert CliRunner().invoke(app, [], env=asked, prog_name="fairway").stdout.split() == completed


def test_the_list_of_commands_reads_no_model() -> None:
    code = (
        "import json, sys\nfrom flows.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    sys.stderr.write(json.dumps(list(sys.modules)))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "validate-seeds" in made.stdout
    assert not {"pydantic", "presets", "schemas.runtime", "prefect", "torch"} & set(json.loads(made.stderr))
