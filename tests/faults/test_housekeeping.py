"""`fairway gc` beside a run in progress."""

import filecmp
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.stages import STAGES
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import ROOT, start_chain

pytestmark = pytest.mark.faults


def test_gc_takes_nothing_from_a_run_in_progress(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    store = tmp_path / "store"
    run = start_chain(store, tmp_path, STEPS, until="train")
    assert run.wait_for(lambda: list(store.glob("work/train/*/checkpoints/*.json")))
    gc = [
        sys.executable,
        "-m",
        "flows.cli",
        "gc",
        "--older-than",
        "0",
        "--keep-runs",
        "0",
        "--store",
        str(store),
    ]
    refused = subprocess.run([*gc, "--remove"], cwd=ROOT, capture_output=True, text=True)
    weights = Path("train", undisturbed.folder("train").name, "last.safetensors")
    same = run.process.wait(300) == 0 and filecmp.cmp(
        store / "stages" / weights, undisturbed.store / "stages" / weights, shallow=False
    )
    for later in list(STAGES)[list(STAGES).index("merge") :]:
        shutil.copytree(undisturbed.store / "stages" / later, store / "stages" / later)
    listed = subprocess.run([*gc, "--json"], cwd=ROOT, capture_output=True, text=True)
    removed = subprocess.run([*gc, "--remove", "--json"], cwd=ROOT, capture_output=True, text=True)
    items, gone = (_results(json.loads(told.stdout)["items"], store) for told in (listed, removed))
    dry = len(items) == len(gone) == len(STAGES)  # a result of each stage, named by no run
    met = (
        refused.returncode == 1
        and "in progress" in refused.stderr
        and same
        and dry
        and not list(store.glob("stages/*/*"))
    )
    told = (
        f"refused while it ran, run undisturbed: {same}; afterwards {len(items)} results listed, "
        f"then {len(gone)} removed"
    )
    figure("8", "`fairway gc --remove` while a run trains, and after it", told, met)


def _results(items: list[dict], store: Path) -> list[str]:
    """Paths of the results among what gc tells; caches of libraries are listed besides."""
    return [item["path"] for item in items if Path(item["path"]).is_relative_to(store / "stages")]
