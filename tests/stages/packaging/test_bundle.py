from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import StageError
from stages.packaging.bundle import bundle, imported_packages

AddModules = Callable[..., str]


@pytest.fixture
def add_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AddModules:
    """Makes modules stages.core.NAME from sources, in which `$` stands for `stages.core.`; returns the
    name of the last one.
    """

    def add(**sources: str) -> str:
        paths = {}
        for name, source in sources.items():
            paths[f"stages.core.{name}"] = tmp_path / f"{name}.py"
            (tmp_path / f"{name}.py").write_text(source.replace("$", "stages.core."), encoding="utf-8")
        monkeypatch.setattr("stages.packaging.bundle.reachable_modules", lambda roots: paths)
        return f"stages.core.{name}"

    return add


def run(source: str, capsys: pytest.CaptureFixture[str]) -> str:
    exec(compile(source, "train_gpt.py", "exec", dont_inherit=True), {"__name__": "__main__"})
    return capsys.readouterr().out


BASE = '''"""What base is for."""
import math
from typing import Any

UNIT = 2  # of length


def area(x: Any) -> float:
    """Of a circle."""
    return math.pi * x * UNIT
'''
MIDDLE = """
import math
import os.path as p

from $base import UNIT, area


def twice(x):
    return p.join("a", str(UNIT)), math.floor(2 * area(x))
"""
ENTRY = '''"""The entry's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from $middle import twice

if TYPE_CHECKING:
    from pandas import DataFrame


def main(x: DataFrame | Any = 1):
    from $base import UNIT
    return cast(Any, (twice(x), UNIT))


if __name__ == "__main__":
    print(main())
'''
CHAIN = {"base": BASE, "middle": MIDDLE, "entry": ENTRY}


@pytest.mark.parametrize("keep_comments", [True, False])
def test_the_script_does_what_the_modules_do(
    keep_comments: bool, add_modules: AddModules, capsys: pytest.CaptureFixture[str]
) -> None:
    source, modules = bundle(add_modules(**CHAIN), keep_comments)
    assert modules == ("stages.core.base", "stages.core.middle", "stages.core.entry")
    assert run(source, capsys) == "(('a/2', 12), 2)\n"
    assert imported_packages(source) == {"__future__", "math", "os", "typing"}


def test_comments_and_docstrings_are_kept_or_left_out(add_modules: AddModules) -> None:
    entry = add_modules(**CHAIN)
    kept, _ = bundle(entry, keep_comments=True)
    bare, _ = bundle(entry, keep_comments=False)
    assert kept.startswith(
        '"""The entry\'s own words."""\n\nfrom __future__ import annotations\n\nimport math\n'
    )
    for words in ("# What base is for.", "# of length", '"""Of a circle."""'):
        assert words in kept
        assert words.strip('#"') not in bare
    assert all(
        header in text
        for header in ("# ---- stages/core/base.py ----", "# ---- stages/core/entry.py ----")
        for text in (kept, bare)
    )
    assert "stages" not in imported_packages(kept) | imported_packages(bare)


def test_a_used_docstring_stays(add_modules: AddModules, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = bundle(add_modules(entry='"""Usage: run it."""\nprint(__doc__)\n'), keep_comments=False)
    assert run(source, capsys) == "Usage: run it.\n"


def test_imports_are_gathered_once_sorted_and_standard_library_first(add_modules: AddModules) -> None:
    source, _ = bundle(
        add_modules(
            a=(
                "import torch\nimport sys\nfrom torch import nn\nfrom collections import deque\nA = "
                "sys, torch, nn, deque\n"
            ),
            entry="import torch\nimport torch.distributed as dist\nfrom torch import Tensor, "
            "nn\nfrom $a import A\n"
            "E = torch, dist, Tensor, nn, A\n",
        ),
        keep_comments=True,
    )
    lines = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert lines == [
        "import sys",
        "from collections import deque",
        "import torch",
        "import torch.distributed as dist",
        "from torch import Tensor, nn",
    ]


def test_equal_loggers_and_constants_may_occur_twice(add_modules: AddModules) -> None:
    common = 'import logging\nlog = logging.getLogger(__name__)\nSPACE = "x"\n'
    bundle(add_modules(a=common + "A = 1\n", entry=common + "from $a import A\nE = A\n"), keep_comments=True)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"a": "def f(): ...\n", "entry": "from $a import f as g\n"}, r"entry\.py:1: .*not renamed"),
        ({"a": "X = 1\n", "entry": "import $a\n"}, "cannot be bundled"),
        ({"a": "X = 1\n", "entry": "from $a import *\n"}, "cannot be bundled"),
        ({"entry": "from math import *\n"}, "a star import"),
        (
            {"a": "X = 1\n", "entry": "from $a import X\nX = 2\n"},
            r"core\.a and stages\.core\.entry both define 'X'",
        ),
        ({"a": "def f(): ...\nX = 1\n", "entry": "from $a import X\ndef f(): ...\n"}, "both define 'f'"),
        (
            {"a": "def f(): ...\nX = 1\n", "entry": "from $a import X\nif X:\n    class f: ...\n"},
            "both define 'f'",
        ),
        ({"a": "CACHE = {}\nX = 1\n", "entry": "from $a import X\nCACHE = {}\n"}, "both define 'CACHE'"),
        (
            {"a": "from math import log\nX = log(2)\n", "entry": "from $a import X\nfrom cmath import log\n"},
            "both define 'log'",
        ),
        (
            {"a": "import torch.nn.functional as F\nX = F\n", "entry": "from $a import X\nF = 1\n"},
            "both define 'F'",
        ),
        ({"entry": "def compile(x): ...\n"}, "defines 'compile' at top level, which would hide Python's own"),
        (
            {"a": "X = 1\n", "entry": "from $a import Y\n"},
            r"imports 'Y' from stages\.core\.a, which defines no such name",
        ),
        ({"a": "from $entry import E\nX = 1\n", "entry": "from $a import X\nE = 1\n"}, "in a circle"),
        (
            {
                "entry": (
                    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import os\nelse:\n    os = 1\n"
                )
            },
            "with an else branch",
        ),
        ({"entry": "import os; X = 1\n"}, "on a line of its own"),
    ],
)
def test_what_would_change_meaning_in_one_script_is_refused(
    sources: dict[str, str], message: str, add_modules: AddModules
) -> None:
    with pytest.raises(StageError, match=message):
        bundle(add_modules(**sources), keep_comments=True)


def test_a_module_that_does_not_ship_is_refused() -> None:
    with pytest.raises(StageError, match=r"stages\.store\.store reaches .*, which does not ship"):
        bundle("stages.store.store", keep_comments=True)


def test_strings_and_positions_survive_odd_line_ends(
    add_modules: AddModules, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = 'X = "ä\u2028é\x0c"\nimport os\n\n\nY = """one\n\n\n\n\n\ntwo"""\nprint(ascii(X + Y), os.sep)\n'
    source, _ = bundle(add_modules(entry=entry), keep_comments=True)
    assert run(source, capsys) == ascii("ä\u2028é\x0cone\n\n\n\n\n\ntwo") + " /\n"


def test_the_submission_bundles_in_both_ways_and_always_the_same() -> None:
    kept, modules = bundle("stages.core.program", keep_comments=True)
    bare, _ = bundle("stages.core.program", keep_comments=False)
    assert modules[-1] == "stages.core.program"
    assert len(bare) < len(kept)
    assert bundle("stages.core.program", keep_comments=True) == (kept, modules)
