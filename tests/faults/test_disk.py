"""No space, a store that cannot be written, a store that is a file: a clear message, and nothing
half-written that is taken later.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.stages import STAGES
from tests.faults.chain import Chain
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import FULL, start_chain, start_fairway

pytestmark = pytest.mark.faults

# Without the capability to override permissions, they bind the superuser too.
BOUND_BY_PERMISSIONS = (
    sys.executable,
    "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])",
)

# What the run says goes through pipes: it would fill the files of the test, not those of the store.
LIMITED = (
    '{ prlimit --fsize=$0 "$@" 2>&1 1>&3 | cat >&2; exit ${PIPESTATUS[0]}; } 3>&1 | cat; exit '
    "${PIPESTATUS[0]}"
)


def test_no_space_in_each_stage(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    wrong, cases = [], 0
    for stage in STAGES if FULL else ("package",):
        store = tmp_path / stage
        shutil.copytree(undisturbed.store, store)
        for later in list(STAGES)[list(STAGES).index(stage) :]:
            shutil.rmtree(store / "stages" / later)
        largest = max(path.stat().st_size for path in undisturbed.folder(stage).rglob("*") if path.is_file())
        limit = max(1024, largest // 2)
        prefix = ("bash", "-c", LIMITED, str(limit))
        run = start_chain(store, tmp_path, STEPS, prefix=prefix)
        status, last = run.process.wait(200), run.text().strip().splitlines()[-1]
        published = (store / "stages" / stage).is_dir() and any((store / "stages" / stage).iterdir())
        clear = stage in last and str(store) in last and "space" in last
        chain = Chain(store, [STEPS])
        again = [name for name in list(STAGES)[: list(STAGES).index(stage) + 1] if not chain.run(name).cached]
        cases += 1
        if status != 1 or published or not clear or again != [stage]:
            wrong.append((stage, status, published, last[-300:], again))
    told = f"{cases - len(wrong)} clear errors, none published, the next run made it {wrong or ''}"
    figure("5", f"files may not grow (RLIMIT_FSIZE) in {cases} stages", told, not wrong)


def test_a_store_that_cannot_be_written(
    undisturbed: Undisturbed, copied: Path, tmp_path: Path, figure: Callable[..., None]
) -> None:
    folders = [copied, *(path for path in copied.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    run = start_chain(copied, tmp_path / "logs", STEPS, prefix=BOUND_BY_PERMISSIONS)
    status, last = run.process.wait(60), run.text().strip().splitlines()[-1]
    for folder in folders:
        folder.chmod(0o755)
    met = status == 1 and last.startswith("SpecError: store = ") and "FAIRWAY_STORE" in last
    figure("5", "a read-only store", "refused before any work, with the remedy" if met else last, met)


def test_a_store_that_is_a_file(tmp_path: Path, figure: Callable[..., None]) -> None:
    (tmp_path / "file").write_text("not a store")
    run = start_fairway(tmp_path / "file", tmp_path / "logs")
    status, said = run.process.wait(60), run.text().strip()
    met = (
        status == 2
        and "FAIRWAY_STORE" in said
        and "Traceback" not in said
        and (tmp_path / "file").read_text() == "not a store"
    )
    figure(
        "5",
        "a store that is a file",
        f"status {status}, refused before any work, with the remedy" if met else json.dumps(said),
        met,
    )
