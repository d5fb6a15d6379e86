"""The worked example of docs/adding-a-technique.md, carried out on a copy of the code as it stands on the
page.
"""

import json
import re
from pathlib import Path

import pytest

from tests.docs.copies import ROOT, copy_with_changes, run

PAGE = (ROOT / "docs" / "adding-a-technique.md").read_text(encoding="utf-8")
SETTING = "train.model.input_gain=true"
STEPS = 20


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with the page's diffs applied and its new file written."""
    folder = tmp_path_factory.mktemp("checkout")
    return copy_with_changes(folder, "adding-a-technique.md", r"tests/\S+", num_diffs=3)


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
    told = json.loads(run(changed, "-m", "flows.cli", "describe", "smoke", "--json", "--set", SETTING))
    count = (
        "from stages.core.model import GPT; from presets import load_preset; "
        "print(sum(p.numel() for p in GPT(load_preset('smoke').train.model).parameters()))"
    )
    before = int(run(changed, "-c", count))
    [said] = re.findall(r"counts the new parameters \((\d+) for `smoke`\)", PAGE)
    assert told["parameters"] - before == int(said)


@pytest.mark.slow
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
