"""A contract about the messages of stages: a setting has the name that `--set` takes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from schemas.introspect import every_setting
from schemas.pipeline import PipelineSpec

ROOT = Path(__file__).parents[1]
DOTTED = re.compile(r"(?<![\w./{])[a-z_]+(?:\.[a-z_]+)+")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each string of a module, but for docstrings; a placeholder is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.lineno, node.value


def test_messages_of_stages_name_each_setting_in_full() -> None:
    full = set(every_setting(PipelineSpec))
    endings = {".".join(name.split(".")[depth:]) for name in full for depth in (1, 2, 3)} - full
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted(ROOT.glob("stages/**/*.py"))
        for line, text in texts(path)
        for name in DOTTED.findall(text)
        if name in endings
    ]
    assert found == []
