"""The worked example of docs/adding-a-technique.md, carried out on a copy of the code as it stands on the
page.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-technique.md").read_text(encoding="utf-8")
SETTING = "train.model.input_gain=true"
STEPS = 20


def apply_diff(folder: Path, diff: str) -> None:
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
        assert text.count(old) == 1, (
            f"docs/adding-a-technique.md: {path.name} does not hold these lines once:\n{old}"
        )
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with the page's diffs applied and its new file written."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("flows", "stages", "schemas", "presets", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    diffs = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(diffs) == 3
    for diff in diffs:
        apply_diff(folder, diff)
    [(name, body)] = re.findall(r"^```python\n# (tests/\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (folder / name).write_text(body, encoding="utf-8")
    return folder


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_new_test_passes_and_fails_without_the_change(changed: Path) -> None:
    [name] = re.findall(r"^python -m pytest (tests/\S+)$", PAGE, re.MULTILINE)
    run(changed, "-m", "pytest", "-q", name)
    model = changed / "stages" / "core" / "model.py"
    text = model.read_text(encoding="utf-8")
    model.write_text(text.replace("x = x * self.input_gain.to(dtype)", "pass"), encoding="utf-8")
    try:
        with pytest.raises(AssertionError, match="test_a_gain_of_one"):
            run(changed, "-m", "pytest", "-q", name)
    finally:
        model.write_text(text, encoding="utf-8")


def test_describe_counts_the_parameters_that_the_page_says(changed: Path) -> None:
    counts = []
    for settings in ((), ("--set", SETTING)):
        told = json.loads(run(changed, "-m", "flows.cli", "describe", "smoke", "--json", *settings))
        counts.append(told["parameters"])
    [said] = re.findall(r"counts the new parameters \((\d+) for `smoke`\)", PAGE)
    assert counts[1] - counts[0] == int(said)


@pytest.mark.timeout(900)
def test_a_run_trains_ships_and_audits_it(changed: Path, tmp_path: Path) -> None:
    """The whole chain without Prefect, which knows nothing of techniques."""
    steps = f"train.schedule.max_steps={STEPS}"
    run(changed, "-m", "tests.faults.chain", str(tmp_path), "--until", "audit", SETTING, steps)
    [record] = tmp_path.glob("stages/audit/*/record.json")
    findings = {
        item["key"]: item for item in json.loads(record.read_text(encoding="utf-8"))["result"]["findings"]
    }
    found = findings["input-gain"]
    assert (found["title"], found["verdict"]) == ("input gain", "took effect")
    [said] = re.findall(r"`input gain  took effect  (.*?) \(input_gain by …\)`", PAGE)
    assert f"{said} (input_gain by " in found["evidence"]
    assert findings["blob"]["verdict"] == "holds"
    packed = json.loads(next(tmp_path.glob("stages/quantize/*/record.json")).read_text(encoding="utf-8"))[
        "result"
    ]
    assert {item["name"]: item["format"] for item in packed["tensors"]}["input_gain"] == "fp32"
    trained = json.loads(next(tmp_path.glob("stages/train/*/record.json")).read_text(encoding="utf-8"))[
        "result"
    ]
    assert [group["optimizer"] for group in trained["groups"] if "input_gain" in group["parameters"]] == [
        "adamw"
    ]
