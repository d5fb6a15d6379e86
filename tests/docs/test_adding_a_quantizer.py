"""The worked example of docs/adding-a-quantizer.md, carried out on a copy of the code."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.docs.copies import copy_with_changes, run

METHOD = ("quantize.method=fixed_clip", "quantize.share=0.8")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    return copy_with_changes(folder, "adding-a-quantizer.md", r"stages/\S+", num_diffs=2)


def result_of(store: Path, stage: str) -> dict[str, Any]:
    [record] = store.glob(f"stages/{stage}/*/record.json")
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))["result"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_trains_ships_and_audits_it(changed: Path, tmp_path: Path) -> None:
    """The whole chain without Prefect, which knows nothing of quantizers."""
    run(changed, "-m", "tests.faults.chain", str(tmp_path), *METHOD, "train.schedule.max_steps=20")
    packed = result_of(tmp_path, "quantize")
    assert packed["method"] == "fixed_clip"
    clips = {clip["clip_ratio"] for tensor in packed["tensors"] for clip in tensor["clips"]}
    assert clips == {0.8}
    findings = {item["key"]: item for item in result_of(tmp_path, "audit")["findings"]}
    assert findings["blob"]["verdict"] == "holds"
    assert (findings["quantizer"]["verdict"], findings["qat"]["verdict"]) == ("took effect", "took effect")
    assert findings["quantizer"]["evidence"].startswith("fixed_clip: ")
    script = tmp_path / result_of(tmp_path, "package")["script"]["path"]
    assert "def fixed_clip(" in script.read_text(encoding="utf-8")
    assert 'method="fixed_clip"' in script.read_text(encoding="utf-8").replace("'", '"')


def test_its_settings_are_described_and_its_schemes_known(changed: Path) -> None:
    given = [part for setting in METHOD for part in ("--set", setting)]
    told = json.loads(run(changed, "-m", "flows.cli", "describe", "smoke", "--json", *given))
    quantize = {
        item["name"]: item["value"] for item in told["settings"] if item["name"].startswith("quantize.")
    }
    assert set(quantize) == {f"quantize.{name}" for name in ("method", "rules", "zstd_level", "share")}
    code = "from presets.quantizers import choose_schemes; print(*choose_schemes(['fixed_clip:int5']))"
    assert run(changed, "-c", code).strip() == "fixed_clip:int5"
