import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from schemas.stages import STAGES
from stages.store.source import (
    OUR_PACKAGES,
    code_digest,
    imported_modules,
    library_versions,
    reachable_modules,
)


@pytest.mark.parametrize(
    ("stage", "reached", "not_reached"),
    [
        (
            "tokenize_corpus",
            {"stages.corpora.files", "stages.core.shards"},
            {"stages.core.model", "stages.train", "schemas.train"},
        ),
        (
            "train",
            {"stages.training.worker", "stages.core.model", "stages.core.muon"},
            # Scores of held-out text change no weight (tests/stages/training/test_held_out.py), so neither
            # they nor their rules may train anything again.
            {
                *("stages.quantize", "stages.corpora.files", "schemas.quantize"),
                *("stages.training.scoring_worker", "stages.training.held_out", "stages.training.stop_rules"),
                *("stages.core.scoring", "stages.core.bits_per_byte"),
            },
        ),
        (
            "quantize",
            {"stages.core.quantizers.gptq_lite", "stages.core.blob.packing"},
            {"stages.core.trainer", "stages.core.muon"},
        ),
        (
            "evaluate",
            {"schemas.evaluate", "stages.processes.launch"},
            {"stages.core.trainer", "stages.quantize"},
        ),
    ],
)
def test_a_stage_is_keyed_by_the_modules_it_reaches_and_no_others(
    stage: str, reached: set[str], not_reached: set[str]
) -> None:
    modules = set(reachable_modules(STAGES[stage].code_roots))
    assert reached <= modules
    assert not modules & not_reached


LIBRARIES = {
    "tokenize_corpus": {"numpy", "pyarrow", "sentencepiece", "zstandard"},
    "train": {"numpy", "pyarrow", "safetensors", "torch", "triton"},
    "merge": {"numpy", "safetensors", "sentencepiece", "torch"},
    "quantize": {"numpy", "safetensors", "torch", "zstandard"},
    "package": {"numpy", "sentencepiece", "torch", "triton", "zstandard"},
    "check_size": {"numpy", "torch", "zstandard"},
    "evaluate": {"numpy", "sentencepiece", "torch", "zstandard"},
    "audit": {"numpy", "pyarrow", "safetensors", "sentencepiece", "torch", "zstandard"},
    "publish": {"numpy", "pyarrow"},
}


def test_libraries_that_can_change_numbers_are_part_of_the_key() -> None:
    found = {name: set(library_versions(stage.code_roots, stage.libraries)) for name, stage in STAGES.items()}
    assert found == LIBRARIES


SHIPPED = {"stages.core.program"}  # part of the package's key, which holds its source; started by nobody here


@pytest.mark.parametrize("name", STAGES)
def test_processes_that_a_stage_starts_are_part_of_its_key_or_declared_to_leave_the_same(name: str) -> None:
    stage = STAGES[name]
    started: set[str] = set()
    for path in reachable_modules(stage.code_roots).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "launch_module"
                and path.stem != "launch"
            ):
                module = node.args[0]
                named = [module.body, module.orelse] if isinstance(module, ast.IfExp) else [module]
                names = {part.value for part in named if isinstance(part, ast.Constant)}
                assert len(names) == len(named), f"{path}: name the module where it is launched"
                started |= names
    assert started == {*stage.child_modules, *stage.unkeyed_modules} - SHIPPED


@pytest.mark.parametrize("name", STAGES)
def test_the_modules_that_a_stage_reaches_are_those_that_grimp_finds(
    name: str, imports: grimp.ImportGraph
) -> None:
    roots = STAGES[name].code_roots
    expected, new = set[str](), set(roots)
    while new:  # a package's own imports run as well when a module in it is imported
        expected |= new
        reached = new.union(*(imports.find_upstream_modules(module) for module in new))
        new = reached.union(*(_packages_of(module) for module in reached)) - expected
    assert set(reachable_modules(roots)) == expected


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph(*OUR_PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def _packages_of(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


@pytest.mark.parametrize(
    ("condition", "first", "second"),
    [
        ("TYPE_CHECKING", False, True),
        ("typing.TYPE_CHECKING", False, True),
        ("__name__ == '__main__'", False, True),
        ("type(x).__name__ == 'Y'", True, True),
        ("not TYPE_CHECKING", True, True),
        ("x", True, True),
    ],
)
def test_only_what_never_runs_here_is_left_out(
    tmp_path: Path, condition: str, first: bool, second: bool
) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"if {condition}:\n    import json\nelif y:\n    import csv\nelse:\n    import wave\n")
    found = imported_modules(path)
    assert ("json" in found, "csv" in found, "wave" in found) == (first, second, second)


def digest_of(folder: Path, text: str) -> str:
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / "__init__.py").touch()
    (folder / "stages" / "helper.py").write_text(text)
    (folder / "stages" / "top.py").write_text(
        "def work():\n    from stages.helper import f\n    return f()\n"
    )
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import importlib.util as u; " + (
        "import stages; from importlib import import_module; spec = u.spec_from_file_location('source', "
        f"{str(Path(__file__).parents[3] / 'stages' / 'store' / 'source.py')!r}); m = "
        "u.module_from_spec(spec); spec.loader.exec_module(m); print(m.code_digest(['stages.top']))"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_code_counts_comments_and_docstrings_do_not(tmp_path: Path) -> None:
    base = digest_of(tmp_path, "def f():\n    return 1\n")
    assert digest_of(tmp_path, '"""Doc."""\n\n\ndef f():\n    """More."""\n    return 1  # why\n') == base
    assert digest_of(tmp_path, "def f():\n    return 2\n") != base


def test_the_digest_is_the_same_in_another_process() -> None:
    code = (
        "from stages.store.source import code_digest; print(code_digest(['stages.train', "
        "'stages.training.worker']))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert other == code_digest(["stages.train", "stages.training.worker"])
