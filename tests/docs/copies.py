"""A copy of the code with the changes that a page shows, and commands run in it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_with_changes(folder: Path, page: str, files: str, num_diffs: int) -> Path:
    """A copy of the code in `folder` with the page's diffs applied and its new file written.

    The new file is the block of Python whose first line is a comment with its path, which matches `files`.
    """
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name in ("flows", "stages", "schemas", "presets", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    diffs = re.findall(r"^```diff\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(diffs) == num_diffs
    for diff in diffs:
        apply_diff(folder, diff, page)
    [(name, body)] = re.findall(rf"^```python\n# ({files})\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (folder / name).write_text(body, encoding="utf-8")
    return folder


def apply_diff(folder: Path, diff: str, page: str) -> None:
    """A diff without line numbers: each part after @@ replaces its old lines, which must stand in the
    file exactly once.
    """
    header, *parts = re.split(r"^@@\n", diff, flags=re.MULTILINE)
    path = folder / re.search(r"^\+\+\+ b/(\S+)$", header, re.MULTILINE)[1]  # type: ignore[index]
    text = path.read_text(encoding="utf-8")
    for part in parts:
        lines = part.splitlines()
        old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
        new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
        assert text.count(old) == 1, f"docs/{page}: {path.name} does not hold these lines once:\n{old}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def run(folder: Path, *arguments: str) -> str:
    """What Python printed with these arguments in the copy, which must end well."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
