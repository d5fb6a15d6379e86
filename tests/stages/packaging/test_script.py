"""The program that ships: its settings as source, and its compressed form."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from presets import PRESETS, load_preset
from schemas.compute_settings import ComputeSettings
from schemas.overrides import apply_overrides
from schemas.package import LORA_MODULE, PackageOptions, PackageSpec
from schemas.recipe import Recipe
from stages.core import program as submission
from stages.packaging.bundle import imported_packages
from stages.packaging.script import as_shipped, program, recipe_source
from stages.store.machine import resolve_precision


@pytest.mark.parametrize("preset", PRESETS)
def test_the_settings_in_the_script_are_those_of_the_run(preset: str) -> None:
    recipe = resolve_precision(load_preset(preset).recipe())
    space: dict = {}
    exec(recipe_source(recipe), space)
    assert space["RECIPE"] == recipe
    lines = recipe_source(recipe).splitlines()
    assert f"        seed={recipe.train.seed}," in lines
    assert max(map(len, lines[lines.index("RECIPE: Recipe | None = Recipe(") :])) <= 140


def test_only_a_run_with_test_time_training_ships_its_code() -> None:
    plain = resolve_precision(load_preset("smoke"))
    learning = apply_overrides(plain, ["evaluate.test_time_training.on=true"])
    space: dict = {}
    exec(recipe_source(learning.recipe()), space)
    assert space["RECIPE"] == learning.recipe()
    assert space["RECIPE"].test_time_training.on
    source, modules = program(PackageOptions(), plain.recipe())
    assert LORA_MODULE not in modules
    assert not re.search(r"class (LoraSettings|DocumentLoras)", source)
    longer, modules = program(PackageOptions(), learning.recipe())
    assert LORA_MODULE in modules
    assert "class DocumentLoras" in longer
    assert len(longer) - len(source) < 20_000
    again = PackageSpec.model_validate_json(learning.package_spec().model_dump_json())
    assert again == learning.package_spec()


def test_a_script_without_recipe_only_scores(tmp_path: Path) -> None:
    assert recipe_source(None).endswith("RECIPE: Recipe | None = None\nMADE_ON = ''\n")
    script = tmp_path / "train_gpt.py"
    script.write_bytes(as_shipped(program(PackageOptions(), None)[0], PackageOptions()))
    done = subprocess.run(
        [sys.executable, "-I", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "it can only score (--eval)" in done.stderr


def test_the_script_is_ordinary_code_in_sections_and_needs_nothing_of_ours() -> None:
    options = PackageOptions()
    source, modules = program(options, resolve_precision(load_preset("smoke").recipe()))
    assert as_shipped(source, options).decode() == source
    for module in modules:
        assert f"# ---- {module.replace('.', '/')}.py ----" in source
    for section in (
        "stages/core/trainer.py",
        "stages/core/averaging.py",
        "stages/core/quantizers/by_rules.py",
        "stages/core/blob/packing.py",
    ):
        assert f"# ---- {section} ----" in source
    assert max(len(line) for line in source.splitlines()) <= 140
    assert not {"schemas", "stages", "flows", "presets", "pydantic", "pyarrow"} & imported_packages(source)


def test_the_compressed_script_is_the_same_program_and_prints_it(tmp_path: Path) -> None:
    options = PackageOptions(compressed=True)
    source, _ = program(options, resolve_precision(Recipe()))
    script = tmp_path / "train_gpt.py"
    script.write_bytes(as_shipped(source, options))
    assert script.stat().st_size < 0.4 * len(source.encode())
    printed = subprocess.run(
        [sys.executable, "-I", str(script), "--source"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert printed.stdout == source + "\n"


def test_a_compressed_script_knows_its_own_source(tmp_path: Path) -> None:
    """Compilers of kernels ask for the source of a function."""
    script = tmp_path / "train_gpt.py"
    source = (
        "import inspect\n\n\ndef kernel():\n    return 1\n\n\nprint(__name__, __file__, "
        "inspect.getsource(kernel), end='')\n"
    )
    script.write_bytes(as_shipped(source, PackageOptions(compressed=True)))
    told = subprocess.run(
        [sys.executable, "-I", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert told.stdout == f"__main__ {script} def kernel():\n    return 1\n", told.stderr


def test_other_settings_make_another_script_and_so_another_package() -> None:
    first, demo = resolve_precision(load_preset("smoke")), resolve_precision(load_preset("demo"))
    second = first.derive(evaluate=first.evaluate.derive(scoring=first.merge.scoring))
    assert first.package_spec() == second.package_spec()
    faster = first.derive(train=demo.train, tokenize=demo.tokenize)
    assert program(first.package, first.recipe()) != program(faster.package, faster.recipe())
    assert PackageSpec(recipe=first.recipe()) == first.package_spec()


@pytest.mark.parametrize(
    ("made_on", "precision", "has_bfloat16", "expected"),
    [
        ("{here}", "bfloat16", True, ["precision bfloat16 on {here}"]),
        ("", "float32", False, ["precision float32 on {here}"]),
        (
            "AVX2, torch 2",
            "float32",
            True,
            ["precision float32 on {here}", "the run was made on AVX2, torch 2: here the last digits will"],
        ),
        (
            "{here}",
            "bfloat16",
            False,
            ["precision bfloat16 on {here}", "this CPU has no bfloat16 instructions: .*--precision float32"],
        ),
    ],
)
def test_the_script_says_when_it_computes_otherwise(
    monkeypatch: pytest.MonkeyPatch, made_on: str, precision: str, has_bfloat16: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(submission, "machine_in_words", lambda device: "this machine")
    monkeypatch.setattr(submission, "cpu_multiplies_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(submission, "MADE_ON", made_on.format(here="this machine"))
    said: list[str] = []
    submission.say_machine(ComputeSettings(precision=precision), said.append)  # type: ignore[arg-type]
    assert len(said) == len(expected)
    for line, pattern in zip(said, expected, strict=True):
        assert re.match(pattern.format(here="this machine"), line)


@pytest.mark.parametrize(
    ("asked", "of_recipe", "has_bfloat16", "found"),
    [
        ([], "bfloat16", False, "bfloat16"),
        (["--precision=float32"], "bfloat16", True, "float32"),
        (["--precision=auto"], "bfloat16", False, "float32"),
        (["--precision=auto", "--device=cuda"], "float32", False, "bfloat16"),
        ([], "auto", True, "bfloat16"),
    ],
)
def test_the_script_takes_the_recipes_precision_or_another(
    monkeypatch: pytest.MonkeyPatch, asked: list[str], of_recipe: str, has_bfloat16: bool, found: str
) -> None:
    monkeypatch.setattr(submission, "cpu_multiplies_bfloat16", lambda: has_bfloat16)
    options = submission.submission_parser(Recipe()).parse_args(asked)
    assert submission._precision(options, ComputeSettings(precision=of_recipe)) == found  # type: ignore[arg-type]


def test_only_a_run_with_fused_kernels_ships_them() -> None:
    recipe = resolve_precision(load_preset("record").recipe())
    plain = dataclasses.replace(
        recipe,
        train=dataclasses.replace(
            recipe.train, compute=dataclasses.replace(recipe.train.compute, fused_kernels=False)
        ),
    )
    assert recipe.train.compute.fused_kernels
    assert "triton" in imported_packages(program(PackageOptions(), recipe)[0])
    assert "triton" not in imported_packages(program(PackageOptions(), plain)[0])
