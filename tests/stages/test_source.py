import subprocess
import sys
from pathlib import Path

import pytest

from stages.registry import STAGES
from stages.source import code_digest, library_versions, reachable_modules


@pytest.mark.parametrize(
    ("stage", "reached", "not_reached"),
    [
        ("tokenize_corpus", {"stages.corpora.files", "stages.core.shards"}, {"stages.core.model", "stages.train", "schemas.train"}),
        (
            "train",
            {"stages.train_rank", "stages.core.model", "stages.core.muon"},
            {"stages.quantize", "stages.corpora.files", "schemas.quantize"},
        ),
        ("quantize", {"stages.core.quantizers.gptq_lite", "stages.core.packing"}, {"stages.core.training", "stages.core.muon"}),
        ("evaluate", {"schemas.evaluate", "stages.launch"}, {"stages.core.training", "stages.quantize"}),
    ],
)
def test_a_stage_is_keyed_by_the_modules_it_reaches_and_no_others(stage: str, reached: set[str], not_reached: set[str]) -> None:
    modules = set(reachable_modules(STAGES[stage].code_roots))
    assert reached <= modules
    assert not modules & not_reached


def test_libraries_that_can_change_numbers_are_part_of_the_key() -> None:
    assert "torch" in library_versions(STAGES["train"].code_roots)
    assert "torch" not in library_versions(STAGES["tokenize_corpus"].code_roots)
    assert "sentencepiece" in library_versions(STAGES["tokenize_corpus"].code_roots)


def digest_of(folder: Path, text: str) -> str:
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / "__init__.py").touch()
    (folder / "stages" / "helper.py").write_text(text)
    (folder / "stages" / "top.py").write_text("def work():\n    from stages.helper import f\n    return f()\n")
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import importlib.util as u; " + (
        "import stages; from importlib import import_module; "
        f"spec = u.spec_from_file_location('source', {str(Path(__file__).parents[2] / 'stages' / 'source.py')!r}); "
        "m = u.module_from_spec(spec); spec.loader.exec_module(m); print(m.code_digest(['stages.top']))"
    )
    return subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_code_counts_comments_and_docstrings_do_not(tmp_path: Path) -> None:
    base = digest_of(tmp_path, "def f():\n    return 1\n")
    assert digest_of(tmp_path, '"""Doc."""\n\n\ndef f():\n    """More."""\n    return 1  # why\n') == base
    assert digest_of(tmp_path, "def f():\n    return 2\n") != base


def test_the_digest_is_the_same_in_another_process() -> None:
    code = "from stages.source import code_digest; print(code_digest(['stages.train', 'stages.train_rank']))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert other == code_digest(["stages.train", "stages.train_rank"])
