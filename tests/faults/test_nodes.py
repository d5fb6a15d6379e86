"""Training on two machines: a cable pulled, a launcher killed, the packaged script under torchrun.

A machine is a network namespace (tests/faults/machines.py); `srun` is a stand-in that runs a task in each,
and leaves them alone afterwards. tests/faults/test_slurm.py has a real one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from stages.processes.launch import ChildFailedError, importing_ours
from tests.faults.chain import Chain
from tests.faults.harness import ROOT, start
from tests.faults.machines import MACHINES, Machine, two_machines
from tests.faults.nodes import checkpoints, listed, nodes_of, wait_until, weights_of

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

LINE = "11"
TIMEOUT_SECONDS = 10.0
STEPS = "train.schedule.max_steps=300"
ONE_THREAD = "train.compute.threads_per_process=1"
ON_TWO = [STEPS, ONE_THREAD, "train.compute.num_nodes=2"]
OPTIONS = {"launcher": "slurm", "interface": "eth0", "group_timeout_seconds": TIMEOUT_SECONDS}
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command = command[1:]
tasks = [
    subprocess.Popen([*prefix, *command], start_new_session=True,
                     env=dict(os.environ, SLURM_PROCID=str(n)))
    for n, prefix in enumerate({[machine.prefix for machine in MACHINES]!r})
]
sys.exit(max(abs(task.wait()) for task in tasks))
"""


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Machine, Machine]]:
    """Two machines, and `srun` on PATH."""
    with two_machines() as both:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "srun").write_text(SRUN)
        (tmp_path / "bin" / "srun").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        yield both


def test_a_cable_is_pulled_and_a_launcher_killed(
    machines: tuple[Machine, Machine], tmp_path: Path, figure: Callable[..., None]
) -> None:
    expected, _ = weights_of(tmp_path / "one", [STEPS, ONE_THREAD, "train.compute.num_processes=2"])
    store = tmp_path / "pulled"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(weights_of, store, ON_TWO, **OPTIONS)
        wait_until(lambda: checkpoints(store) or run.done())
        assert not run.done()
        machines[0].pull_cable()
        pulled = time.monotonic()
        with pytest.raises(ChildFailedError):
            run.result()
        seconds = time.monotonic() - pulled
    left = nodes_of(store)
    told = f"ended after {seconds:.1f} s, {len(left)} processes left"
    done = f"the cable between two machines pulled, --group-timeout {TIMEOUT_SECONDS:.0f}"
    figure(LINE, done, told, seconds <= TIMEOUT_SECONDS + 10 and not left)
    machines[0].plug_cable()
    sha256, resumed = weights_of(store, ON_TWO, **OPTIONS)
    same = sha256 == expected
    told = f"went on from step {listed(resumed)}, weights as of two processes on one machine: {same}"
    figure(LINE, "the cable back, the same run again", told, same and len(resumed) > 0)

    store = tmp_path / "late"
    code = (
        "import sys; from tests.faults.test_nodes import *; weights_of(Path(sys.argv[1]), ON_TWO, **OPTIONS)"
    )
    launcher = start(["-c", code, str(store)], tmp_path / "logs")
    wait_until(lambda: checkpoints(store) or launcher.process.poll() is not None)
    [started] = psutil.Process(launcher.process.pid).children()
    started.send_signal(signal.SIGKILL)
    launcher.process.kill()
    launcher.process.wait()
    late = nodes_of(store)
    sha256, resumed = weights_of(store, ON_TWO, **OPTIONS)
    told = f"{len(late)} processes of the first try ran on; then the same bytes: {sha256 == expected}"
    met = len(late) >= 4 and sha256 == expected and not [item for item in late if item.is_running()]
    figure(LINE, "launcher and srun killed, started again while the machines run on", told, met)


def test_the_packaged_script_runs_on_two_machines_with_a_disk_each(
    machines: tuple[Machine, Machine], tmp_path: Path, figure: Callable[..., None]
) -> None:
    chain = Chain(tmp_path / "store", ["train.schedule.max_steps=20", "evaluate.scoring.stride=0"])
    for stage in ("tokenize_corpus", "train", "merge", "quantize", "package"):
        chain.run(stage)
    tokenized, root = chain.results["tokenized"], chain.store.root
    script = root / chain.results["package"].script.path
    running = []
    for number, machine in enumerate(machines):
        disk = tmp_path / machine.name
        disk.mkdir()
        shutil.copy(script, disk)
        for split in ("train", "val"):
            for index, ref in enumerate(getattr(tokenized, f"{split}_shards")):
                shutil.copy(root / ref.path, disk / f"fineweb_{split}_{index:06d}.bin")
        shutil.copy(root / tokenized.tokenizer.path, disk / "tokenizer.model")
        command = [
            *(*machine.prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
            *(f"--node-rank={number}", "--nproc-per-node=1", f"--master-addr={machines[0].address}"),
            *("--master-port=29511", "--max-restarts=0", str(disk / script.name), "--device=cpu"),
            *("--stride=0", f"--json={disk / 'scores.json'}"),
        ]
        environment = {
            **importing_ours(os.environ),
            "DATA_PATH": str(disk),
            "TOKENIZER_PATH": str(disk / "tokenizer.model"),
            "GLOO_SOCKET_IFNAME": "eth0",
        }
        running.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL))
    statuses = [process.wait(300) for process in running]
    blobs = [(tmp_path / machine.name / "model.fwz").exists() for machine in machines]
    scores = json.loads((tmp_path / machines[0].name / "scores.json").read_text())
    told = f"status {statuses}, blob on the first machine only: {blobs == [True, False]}, scored"
    met = statuses == [0, 0] and blobs == [True, False] and scores["non_overlapping"]["bpb"] > 0
    figure(LINE, "train_gpt.py under torchrun --nnodes=2, a disk each", told, met)
