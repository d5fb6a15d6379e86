"""Blobs, records and shards are data from strangers: thousands of mutations, within bounds of time and
memory that the kernel holds.
"""

import ast
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.training.files import TrainingFiles
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import FULL, ROOT

pytestmark = pytest.mark.faults

_READS_CODE = {"pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "torch.load", "eval", "exec"}
MUTATIONS = 10_000 if FULL else 300


def test_mutations_of_blobs_records_and_shards(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    shutil.copytree(undisturbed.store, tmp_path / "store")
    command = [sys.executable, "-m", "tests.faults.mutations", str(tmp_path), str(MUTATIONS), STEPS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    for kind, result in told["kinds"].items():
        answer = (
            f"{result['refused']:,} refused with a typed error, {result['sound']:,} still sound, "
            f"{len(result['wrong'])} else; slowest {result['slowest']:.2f} s, {result['grown_mib']} MiB more "
            f"memory at most {result['wrong'][:3] or ''}"
        )
        met = not result["wrong"] and result["slowest"] < 10 and result["num"] >= 0.2 * MUTATIONS
        figure(
            "6",
            f"{result['num']:,} mutations of {kind}, address space limited to {told['limit_mib']} MiB more",
            answer,
            met,
        )


def test_nothing_here_reads_pickle(figure: Callable[..., None]) -> None:
    """Nothing imports pickle and its like, and torch.load does not occur: weights are safetensors or our
    own blob.
    """
    found = []
    for folder in ("stages", "schemas", "flows", "presets"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import | ast.ImportFrom)
                    else []
                )
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if _READS_CODE & {*names, getattr(node, "module", None), called}:
                    found.append(f"{path.name}:{node.lineno}")
    figure(
        "6",
        "pickle, marshal, shelve, torch.load, eval or exec in the source",
        f"{len(found)} places {found or ''}",
        not found,
    )


def test_a_checkpoint_that_is_a_pickle_is_not_loaded(tmp_path: Path, figure: Callable[..., None]) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "owned"),))

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    content = pickle.dumps(Evil())
    (folder / "step-00000003.safetensors").write_bytes(content)
    about = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "steps": 3,
        "seconds": 1.0,
        "qat_steps": 0,
        "snapshots": [],
    }
    (folder / "step-00000003.json").write_text(
        json.dumps(about | {"resumed_from": [], "last_lr_scale": 1.0, "last_qat_on": False})
    )
    files = TrainingFiles(tmp_path, 30, 2)
    state = files.resume()
    files.close()
    figure(
        "6",
        "a training checkpoint that is a pickle, with a right checksum",
        "not loaded",
        state is None and not (tmp_path / "owned").exists(),
    )
