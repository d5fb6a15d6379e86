"""Training on two machines: a cable pulled, a launcher killed, the packaged script under torchrun.

A machine is a network namespace with its own address; `srun` is a stand-in that runs a task in each, and
leaves them alone afterwards. Needs root and `ip`.
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

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

LINE = "11"
HOSTS = ("fairway0", "fairway1")
TIMEOUT_SECONDS = 10.0
STEPS = "train.schedule.max_steps=300"
ONE_THREAD = "train.compute.threads_per_process=1"
MACHINES = [STEPS, ONE_THREAD, "train.compute.num_nodes=2"]
OPTIONS = {"launcher": "slurm", "interface": "eth0", "group_timeout_seconds": TIMEOUT_SECONDS}
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command = command[1:]
tasks = [
    subprocess.Popen(["ip", "netns", "exec", host, *command], start_new_session=True,
                     env=dict(os.environ, SLURM_PROCID=str(n)))
    for n, host in enumerate({HOSTS!r})
]
sys.exit(max(abs(task.wait()) for task in tasks))
"""


def ip(*words: str) -> int:
    return subprocess.run(["ip", *words], capture_output=True).returncode


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two namespaces with a cable between them, and `srun` on PATH."""
    if shutil.which("ip") is None or any(ip("netns", "add", host) for host in HOSTS):
        for host in HOSTS:
            ip("netns", "del", host)
        pytest.skip("this machine lets nobody make network namespaces (root and `ip` are needed)")
    try:
        ip("link", "add", "eth0", "netns", HOSTS[0], "type", "veth", "peer", "eth0", "netns", HOSTS[1])
        for number, host in enumerate(HOSTS):
            ip("-n", host, "address", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host, "link", "set", device, "up")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "srun").write_text(SRUN)
        (tmp_path / "bin" / "srun").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        yield
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def weights_of(store: Path, overrides: list[str], **options: object) -> tuple[str, tuple[int, ...]]:
    """sha256 of the last iterate, and the steps from which training went on."""
    chain = Chain(store, overrides, **options)
    chain.run("tokenize_corpus")
    trained = chain.run("train").record.result
    return trained.last.weights.sha256, trained.timings.resumed_from_steps


def checkpoints(store: Path) -> list[Path]:
    return list(store.glob("work/train/*/checkpoints/*.json"))


def wait_until(condition: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def nodes_of(store: Path) -> list[psutil.Process]:
    """Processes of any try of a training in the store, on any machine."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(store) in word for word in process.info["cmdline"] or ())
        and process.pid != os.getpid()
    ]


def test_a_cable_is_pulled_and_a_launcher_killed(
    machines: None, tmp_path: Path, figure: Callable[..., None]
) -> None:
    expected, _ = weights_of(tmp_path / "one", [STEPS, ONE_THREAD, "train.compute.num_processes=2"])
    store = tmp_path / "pulled"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(weights_of, store, MACHINES, **OPTIONS)
        wait_until(lambda: checkpoints(store) or run.done())
        assert not run.done()
        ip("-n", HOSTS[0], "link", "set", "eth0", "down")
        pulled = time.monotonic()
        with pytest.raises(ChildFailedError):
            run.result()
        seconds = time.monotonic() - pulled
    left = nodes_of(store)
    told = f"ended after {seconds:.1f} s, {len(left)} processes left"
    done = f"the cable between two machines pulled, --group-timeout {TIMEOUT_SECONDS:.0f}"
    figure(LINE, done, told, seconds <= TIMEOUT_SECONDS + 10 and not left)
    ip("-n", HOSTS[0], "link", "set", "eth0", "up")
    sha256, resumed = weights_of(store, MACHINES, **OPTIONS)
    told = f"went on from step {resumed}, weights as of two processes on one machine: {sha256 == expected}"
    figure(LINE, "the cable back, the same run again", told, sha256 == expected and len(resumed) > 0)

    store = tmp_path / "late"
    code = (
        "import sys; from tests.faults.test_nodes import *; "
        "weights_of(Path(sys.argv[1]), MACHINES, **OPTIONS)"
    )
    launcher = start(["-c", code, str(store)], tmp_path / "logs")
    wait_until(lambda: checkpoints(store) or launcher.process.poll() is not None)
    [srun] = psutil.Process(launcher.process.pid).children()
    srun.send_signal(signal.SIGKILL)
    launcher.process.kill()
    launcher.process.wait()
    late = nodes_of(store)
    sha256, resumed = weights_of(store, MACHINES, **OPTIONS)
    told = f"{len(late)} processes of the first try ran on; then the same bytes: {sha256 == expected}"
    met = len(late) >= 4 and sha256 == expected and not [item for item in late if item.is_running()]
    figure(LINE, "launcher and srun killed, started again while the machines run on", told, met)


def test_the_packaged_script_runs_on_two_machines_with_a_disk_each(
    machines: None, tmp_path: Path, figure: Callable[..., None]
) -> None:
    chain = Chain(tmp_path / "store", ["train.schedule.max_steps=20", "evaluate.scoring.stride=0"])
    for stage in ("tokenize_corpus", "train", "merge", "quantize", "package"):
        chain.run(stage)
    tokenized, root = chain.results["tokenized"], chain.store.root
    script = root / chain.results["package"].script.path
    running = []
    for number, host in enumerate(HOSTS):
        disk = tmp_path / host
        disk.mkdir()
        shutil.copy(script, disk)
        for split in ("train", "val"):
            for index, ref in enumerate(getattr(tokenized, f"{split}_shards")):
                shutil.copy(root / ref.path, disk / f"fineweb_{split}_{index:06d}.bin")
        shutil.copy(root / tokenized.tokenizer.path, disk / "tokenizer.model")
        command = [
            *("ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
            *(f"--node-rank={number}", "--nproc-per-node=1", "--master-addr=10.77.0.1"),
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
    blobs = [(tmp_path / host / "model.fwz").exists() for host in HOSTS]
    scores = json.loads((tmp_path / HOSTS[0] / "scores.json").read_text())
    told = f"status {statuses}, blob on the first machine only: {blobs == [True, False]}, scored"
    met = statuses == [0, 0] and blobs == [True, False] and scores["non_overlapping"]["bpb"] > 0
    figure(LINE, "train_gpt.py under torchrun --nnodes=2, a disk each", told, met)
