"""Several machines: the commands of the launchers, the try that counts, and clear refusals. Nothing here
loads torch; tests/stages/test_train.py trains, tests/faults/test_nodes.py pulls cables.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError, StageError
from schemas.runtime import RunOptions
from stages.processes import meeting as meetings
from stages.processes import slurm
from stages.processes.hosts import check_launcher, command_of, runner_for
from stages.processes.kubernetes import TEMPLATE, filled, parts_of
from stages.processes.launch import ChildFailedError, importing_ours, run_child, run_ranks
from stages.processes.meeting import TRY, Arrival, Meeting, StaleTryError, refuse_stale_try
from stages.processes.node import interface_of
from stages.processes.process_tree import is_running
from stages.store.workspace import no_progress

TWO = ComputeSettings(num_nodes=2, num_processes=3, threads_per_process=4)


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    return Meeting.call(tmp_path, ("-m", "x"), TWO, "lo")


def test_srun_starts_one_task_a_machine_with_the_cores_of_its_processes(
    meeting: Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").write_text("")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = slurm.command(TWO, meeting)
    assert command[0] == str(tmp_path / "srun")  # what execs it does not look at PATH
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=12"} <= set(command)
    assert {"--kill-on-bad-exit=1", "--cpu-bind=none", "--mpi=none", "--input=none"} <= set(command)
    here = [sys.executable, "-m", "stages.processes.node", "slurm", str(meeting.folder), meeting.token]
    assert command[-len(here) :] == here


def test_what_srun_needs_of_its_surroundings_stays() -> None:
    from stages.processes.surroundings import for_children

    given = {"SLURM_JOB_ID": "7", "SLURM_CONF": "/etc/x", "SLURM_NNODES": "9", "SLURM_PROCID": "1"}
    kept = {name for name in for_children(given) if name.startswith("SLURM")}
    assert kept == {"SLURM_JOB_ID", "SLURM_CONF"}


def test_a_launcher_that_cannot_work_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for launcher, program in (("slurm", "srun"), ("kubernetes", "kubectl")):
        options = RunOptions.model_validate({"launcher": launcher})
        with pytest.raises(SpecError, match=f"launcher = {launcher}: the program {program} is not on PATH"):
            runner_for(TWO, options)
        with pytest.raises(SpecError, match=r"num_nodes = 1 .* give --nodes"):
            check_launcher(ComputeSettings(), options)
    (tmp_path / "kubectl").write_text("")
    (tmp_path / "kubectl").chmod(0o755)
    with pytest.raises(SpecError, match=f"{TEMPLATE} = '': no such file"):
        check_launcher(TWO, RunOptions(launcher="kubernetes"))
    assert runner_for(ComputeSettings(), RunOptions()) is run_ranks


def test_the_job_keeps_the_template_and_runs_one_pod_for_each_machine() -> None:
    pod = {"containers": [{"name": "x", "image": "fairway:1", "args": ["old"]}], "volumes": [{"name": "v"}]}
    template = {"kind": "Job", "metadata": {"namespace": "ml"}, "spec": {"template": {"spec": pod}}}
    job = filled(template, 3, Path("/shared/work"), "0123456789abcdef0123")
    assert job["metadata"] == {"namespace": "ml", "name": "fairway-0123456789abcdef"}
    spec = job["spec"]
    assert [spec[name] for name in ("completionMode", "completions", "parallelism", "backoffLimit")] == [
        "Indexed",
        3,
        3,
        0,
    ]
    [container] = spec["template"]["spec"]["containers"]
    assert container["image"] == "fairway:1"
    assert container["command"][1:] == [
        *("-m", "stages.processes.node", "kubernetes", "/shared/work", "0123456789abcdef0123")
    ]
    assert container["args"] == []
    assert spec["template"]["spec"]["volumes"] == [{"name": "v"}]
    with pytest.raises(SpecError, match="must be a Job with one container"):
        filled({"kind": "Pod", "spec": {"containers": []}}, 2, Path("/x"), "t")


def test_an_interface_is_named_where_there_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface_of("lo") == ("lo", "127.0.0.1")
    with pytest.raises(SpecError, match=r"interface = ib7: .* has .*lo \(127\.0\.0\.1\)"):
        interface_of("ib7")
    [address] = [item for item in psutil.net_if_addrs()["lo"] if item.address == "127.0.0.1"]
    up = psutil.net_if_stats()["lo"]
    monkeypatch.setattr("psutil.net_if_stats", lambda: {"lo": up, "eth0": up, "docker0": up})
    monkeypatch.setattr(
        "psutil.net_if_addrs", lambda: {name: [address] for name in ("lo", "eth0", "docker0")}
    )
    with pytest.raises(SpecError, match=r"eth0 .*, docker0 .*; name one with --interface"):
        interface_of(None)


def test_the_newest_try_fences_the_one_before_it(
    tmp_path: Path, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meetings, "FENCE_SECONDS", 0.0)
    monkeypatch.setenv(TRY, f"{meeting.token} {meeting.folder}")
    meeting.arrive(0, Arrival(address="127.0.0.1", port=1))
    refuse_stale_try()
    newer = Meeting.call(tmp_path, ("-m", "x"), TWO, "lo")
    assert (meeting.counts, newer.counts) == (False, True)
    with pytest.raises(StaleTryError):
        refuse_stale_try()
    with pytest.raises(StaleTryError):
        meeting.arrive(1, Arrival(address="127.0.0.1", port=1))
    meeting.end()  # a late launcher does not end the newer try
    assert newer.counts
    with pytest.raises(TimeoutError, match=r"machine 0, 1 of 2 \(counted from 0\) not here after 0.0 s"):
        newer.wait_for(2, timeout=0.0)
    newer.end()
    assert not newer.counts
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_machine_does_not_see_is_named() -> None:
    with pytest.raises(StageError, match=r"/no/such: this machine does not see .* on a disk that they share"):
        Meeting(Path("/no/such"), "t").order()


RANK = """
import os, sys, time
from pathlib import Path
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"]
names += ["MASTER_ADDR", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS"]
print(*(os.environ[name] for name in names), flush=True)
(Path(sys.argv[1]) / os.environ["RANK"]).write_text(str(os.getpid()))
if sys.argv[2] == "wait":
    time.sleep(300)
"""


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and is_running(psutil.Process(pid))


def run_two(folder: Path, how: str, seen: list[list[str]]) -> None:
    (folder / "rank.py").write_text(RANK)
    (folder / "pids").mkdir()
    compute = ComputeSettings(num_nodes=2, threads_per_process=1)
    run = runner_for(compute, RunOptions())
    program = [str(folder / "rank.py"), str(folder / "pids"), how]
    seen.append(run(program, folder, compute, no_progress, 120.0, env=importing_ours(os.environ)))


def test_each_process_knows_its_place_and_a_killed_machine_ends_all(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    for how in ("end", "wait"):
        (tmp_path / how).mkdir()
    run_two(tmp_path / "end", "end", seen)
    assert sorted(seen[0]) == ["0 0 2 1 127.0.0.1 lo 1", "1 0 2 1 127.0.0.1 lo 1"]
    pids = tmp_path / "wait" / "pids"

    def kill_second_machine() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (pids.is_dir() and len(list(pids.iterdir())) == 2):
            time.sleep(0.05)
        time.sleep(0.2)
        psutil.Process(int((pids / "1").read_text())).parent().kill()  # type: ignore[union-attr]

    killer = threading.Thread(target=kill_second_machine)
    killer.start()
    with pytest.raises(ChildFailedError, match="machine 1 ended with status -9"):
        run_two(tmp_path / "wait", "wait", seen)
    killer.join()
    assert [path.name for path in pids.iterdir() if runs(int(path.read_text()))] == []
    assert not (tmp_path / "wait" / "nodes").exists()


def test_bad_input_on_a_machine_is_no_reason_to_try_again(tmp_path: Path) -> None:
    compute = ComputeSettings(num_nodes=2, threads_per_process=1)
    run = runner_for(compute, RunOptions(interface="ib7"))
    with pytest.raises(ChildFailedError):
        run(["-c", ""], tmp_path, compute, no_progress, 60.0, env=importing_ours(os.environ))
    told = json.loads((tmp_path / "error.json").read_text())
    assert told["kind"] == "SpecError"  # launch_module raises it
    assert "interface = ib7" in told["message"]


KUBECTL = f"""#!{sys.executable}
import json, sys
from pathlib import Path
with (Path(__file__).parent / "calls").open("a") as calls:
    given = "" if sys.stdin.isatty() else sys.stdin.read()
    print(json.dumps([sys.argv[1:], given]), file=calls)
said = {{"create": SHOWN if "--dry-run=client" in sys.argv else "", "get": STATE, "logs": "a line of a pod"}}
print(said.get(sys.argv[1], ""))
"""


def test_the_job_is_created_after_the_other_objects_and_deleted_at_the_end(
    meeting: Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = {"containers": [{"name": "x", "image": "fairway:1"}]}
    template = {"kind": "Job", "metadata": {}, "spec": {"template": {"spec": pod}}}
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "p"}}
    shown = f"{json.dumps(policy)}\n{json.dumps(template)}\n"
    state = json.dumps({"status": {"conditions": [{"type": "Complete", "status": "True"}]}})
    (tmp_path / "template.yaml").write_text("kubectl reads it")
    (tmp_path / "bin").mkdir()
    code = KUBECTL.replace("SHOWN", repr(shown)).replace("STATE", repr(state))
    (tmp_path / "bin" / "kubectl").write_text(code)
    (tmp_path / "bin" / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv(TEMPLATE, str(tmp_path / "template.yaml"))
    lines = run_child(
        command_of("kubernetes", meeting), TWO, no_progress, 60.0, env=importing_ours(os.environ)
    )
    assert lines == ["a line of a pod"]
    calls = [json.loads(line) for line in (tmp_path / "bin" / "calls").read_text().splitlines()]
    assert [words[0] for words, _ in calls] == ["create", "apply", "create", "get", "logs", "delete"]
    assert json.loads(calls[1][1])["items"] == [policy]
    job = json.loads(calls[2][1])
    assert job["spec"]["completions"] == TWO.num_nodes
    assert calls[5][0][-1] == job["metadata"]["name"]


def test_a_template_has_one_job() -> None:
    with pytest.raises(SpecError, match=f"{TEMPLATE}: has 0 Jobs; must have one"):
        parts_of('{"kind": "List", "items": [{"kind": "Service"}]}')


SRUN = f"""#!{sys.executable}
import signal, sys, time
from pathlib import Path
[place] = Path(sys.argv[-2]).glob("nodes")
(place / (sys.argv[-1] + ".failed")).touch()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(300)
"""


def test_srun_that_waits_for_a_lost_machine_is_ended_and_its_allocation_given_back(
    meeting: Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(slurm, "_END_SECONDS", 0.1)
    for name, code in (("srun", SRUN), ("scancel", f'#!/bin/sh\necho "$@" >> {tmp_path}/given-back\n')):
        (tmp_path / name).write_text(code)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "argv", ["slurm", str(meeting.folder), meeting.token])
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        slurm.main()
    assert (ended.value.code, time.monotonic() - began < 60) == (1, True)
    given_back = (tmp_path / "given-back").read_text().splitlines()
    assert given_back == [f"--quiet --name={slurm.job_name(meeting.folder)}"] * 2  # an earlier try's too
