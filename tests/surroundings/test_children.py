"""What processes of stages take over from the environment and the working folder: nothing that is meant
for others. Real processes.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError
from schemas.files import SourceFile
from stages.processes import launch
from stages.processes.launch import launch_module, run_child
from stages.processes.surroundings import for_children, left_over
from stages.store.workspace import no_progress

ROOT = Path(__file__).parents[2]
JOB = SourceFile(path="the job", num_bytes=1, sha256="0" * 64)
ONE = ComputeSettings(threads_per_process=1)
TWO = ComputeSettings(num_processes=2, threads_per_process=1)
OF_A_SCHEDULER = {
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "PET_NNODES": "3",
    "PET_MAX_RESTARTS": "rubbish",
    "PET_STANDALONE": "1",
    "TORCHELASTIC_RUN_ID": "theirs",
    "RANK": "3",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "ROLE_WORLD_SIZE": "4",
    "NODE_RANK": "1",
    "MASTER_ADDR": "a.host.that.is.not",
    "MASTER_PORT": "1",
    "OMP_NUM_THREADS": "77",
    "OMP_PLACES": "{0}",
    "KMP_AFFINITY": "rubbish",
    "GOMP_CPU_AFFINITY": "0",
    "OMPI_COMM_WORLD_RANK": "3",
}
SHADOW = "raise SystemExit('a file of the working folder was imported')\n"


def test_leftovers_are_known_by_name_and_the_users_own_two_stay() -> None:
    users = {
        "OMP_WAIT_POLICY": "ACTIVE",
        "GOMP_SPINCOUNT": "7",
        "CUDA_VISIBLE_DEVICES": "",
        "RANKING": "1",
        "NCCL_DEBUG": "INFO",
        "PETS": "2",
    }
    assert left_over(OF_A_SCHEDULER | users) == set(OF_A_SCHEDULER)
    assert users.items() <= for_children(OF_A_SCHEDULER | users).items()


def test_a_child_sees_no_leftovers_and_speaks_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    python = {
        "PYTHONWARNINGS": "error",
        "PYTHONOPTIMIZE": "2",
        "PYTHONIOENCODING": "ascii",
        "PYTHONINSPECT": "1",
        "PYTHONUTF8": "0",
    }
    for name, value in {**OF_A_SCHEDULER, **python, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    code = (
        "import json, os, sys, warnings; warnings.warn('not an error'); print(json.dumps([dict(os.environ), "
        "'−→ü'], ensure_ascii=False))"
    )
    told, text = json.loads(run_child([sys.executable, "-c", code], ONE, no_progress, None)[-1])
    assert text == "−→ü"
    assert told["OMP_NUM_THREADS"] == "1"
    assert {*OF_A_SCHEDULER} & {*told} == {"OMP_NUM_THREADS"}
    assert not {"PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONIOENCODING", "PYTHONINSPECT"} & {*told}


def test_ranks_meet_among_leftovers_beside_files_that_are_named_like_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, here, work = tmp_path / "path", tmp_path / "cwd", tmp_path / "work"
    for folder in (theirs, here, work):
        folder.mkdir()
    for name in ("random.py", "stages.py", "torch.py", "json.py"):
        (here / name).write_text(SHADOW)
    (theirs / "stages.py").write_text(SHADOW)
    (theirs / "job_module.py").write_text(
        "import os\nfrom schemas.files import SourceFile\nfrom stages.processes.launch import job_of\n"
        "with job_of(SourceFile) as (job, leave):\n"
        "    told = {'num_bytes': os.environ['WORLD_SIZE'], 'path': os.environ['PYTHONPATH']}\n"
        "    if os.environ['RANK'] == '0': leave(SourceFile(**told, sha256=job.sha256))\n"
    )
    for name, value in OF_A_SCHEDULER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(theirs))
    monkeypatch.chdir(here)
    told = launch_module("job_module", JOB, SourceFile, work, TWO, no_progress, 120)
    assert told.num_bytes == 2
    assert told.path == os.pathsep.join([str(ROOT), str(theirs)])


def test_a_hidden_gpu_is_named_by_the_variable_that_hides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        SpecError, match=r"^device = cuda.* sees 0 with CUDA_VISIBLE_DEVICES = ''.* Give --device cpu"
    ):
        launch_module(
            "stages.training.worker",
            JOB,
            SourceFile,
            tmp_path,
            ComputeSettings(device="cuda", num_processes=2),
            no_progress,
            None,
        )


@pytest.mark.parametrize("memory", ["missing", "a file"])
def test_ranks_meet_in_the_store_where_memory_takes_no_file(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_MEMORY", tmp_path / memory)
    (tmp_path / "a file").write_text("")
    assert launch._meeting_place(tmp_path) == tmp_path / "rendezvous"
    assert list((tmp_path / "rendezvous").iterdir()) == []


def test_no_room_anywhere_is_said_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(launch, "_MEETING_BYTES", 1 << 50)
    with pytest.raises((OSError, MemoryError)):
        launch._meeting_place(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


MEET = """
import os, sys, torch, torch.distributed as dist
store = dist.FileStore(os.environ["RENDEZVOUS_FILE"], 2)
dist.init_process_group("gloo", store=store, rank=int(os.environ["RANK"]), world_size=2)
total = torch.ones(4_000_000)
dist.all_reduce(total)
if os.environ["RANK"] == "0":  # two ranks in one pipe can mix within a line
    print(total[0].item(), os.environ["RENDEZVOUS_FILE"])
dist.destroy_process_group()  # else gloo's threads abort the process now and then
"""
RUN = """
import sys
from pathlib import Path
from schemas.compute_settings import ComputeSettings
from stages.processes.launch import run_ranks
compute = ComputeSettings(num_processes=2, threads_per_process=1)
print(run_ranks([sys.argv[1]], Path(sys.argv[1]).parent, compute, lambda *_: None, 120)[-1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "where"), [("64k", "rendezvous"), ("1m", "/dev/shm/")])
def test_sixteen_megabytes_are_reduced_through_any_size_of_shared_memory(
    size: str, where: str, tmp_path: Path
) -> None:
    mounted = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "sh", "-c", mounted], capture_output=True).returncode
    ):
        pytest.skip("this machine lets nobody mount in a namespace of his own")
    (tmp_path / "rank.py").write_text(MEET)
    command = f'{mounted} && exec "$0" "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, sys.executable, "-c", RUN, str(tmp_path / "rank.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2.0 ")
    assert where in done.stdout
