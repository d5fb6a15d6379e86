"""Child processes: results come back, errors keep their kind, and nobody outlives the caller.

Real processes throughout.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from schemas.compute_settings import ComputeSettings
from schemas.errors import StageError
from schemas.evaluate import EvaluateSpec
from schemas.files import FileRef
from schemas.scoring_settings import ScoringSettings
from stages.processes.launch import ChildFailedError, launch_module, run_child, run_ranks
from stages.store.workspace import no_progress

ONE = ComputeSettings(threads_per_process=1)
TWO = ComputeSettings(num_processes=2, threads_per_process=1)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_are_logged_and_progress_is_reported() -> None:
    seen: list[tuple[float, float, str]] = []
    tail = run_child(
        python("print('hello'); print('@progress 2 5 windows, sliding')"),
        ONE,
        lambda *p: seen.append(p),
        None,
    )
    assert tail == ["hello"]
    assert seen == [(2.0, 5.0, "windows, sliding")]


@pytest.mark.parametrize(
    ("busy_percent", "quota", "given", "expected"),
    [
        ([0, 0], None, {}, ["2000", None]),
        ([20, 20], None, {}, ["2000", None]),
        ([50, 50], None, {}, [None, "PASSIVE"]),
        ([50] * 8, None, {}, ["2000", None]),
        ([0], None, {}, [None, "PASSIVE"]),
        ([100, 100, 0, 0], None, {}, ["2000", None]),
        ([0] * 8, 1.0, {}, [None, "PASSIVE"]),  # a container may use one core of eight
        ([0] * 8, 2.0, {}, ["2000", None]),
        ([0, 0], None, {"OMP_WAIT_POLICY": "ACTIVE"}, [None, "ACTIVE"]),
        ([90, 90], None, {"GOMP_SPINCOUNT": "7"}, ["7", None]),
    ],
)
def test_threads_spin_briefly_on_idle_cores_only_unless_the_environment_decides(
    busy_percent: list[float],
    quota: float | None,
    given: dict[str, str],
    expected: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: busy_percent)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(len(busy_percent))))
    monkeypatch.setattr("stages.processes.cores.cpu_quota", lambda: quota or math.inf)
    environment = {
        key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    } | given
    code = (
        "import json, os; print(json.dumps([os.environ.get('GOMP_SPINCOUNT'), "
        "os.environ.get('OMP_WAIT_POLICY')]))"
    )
    tail = run_child(python(code), ComputeSettings(threads_per_process=2), no_progress, None, env=environment)
    assert json.loads(tail[-1]) == expected


def test_a_failed_child_is_transient_and_shows_its_last_lines() -> None:
    with pytest.raises(ChildFailedError, match=r"status 3; its last lines:\nlast words"):
        run_child(python("import sys; print('last words'); sys.exit(3)"), ONE, no_progress, None)
    with pytest.raises(ChildFailedError, match="signal SIGKILL"):
        run_child(python("import os; os.kill(os.getpid(), 9)"), ONE, no_progress, None)


def test_a_child_that_runs_too_long_is_ended() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="ran past 1"):
        run_child(python("import time; time.sleep(60)"), ONE, no_progress, 1.0)
    assert time.monotonic() - started < 20


GRANDCHILD = "import subprocess; print(subprocess.Popen(['sleep', '300']).pid, 'done', flush=True); "


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_grandchild_that_keeps_the_output_open_is_not_waited_for_and_ended(
    timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    tail = run_child(python(GRANDCHILD), ONE, no_progress, timeout)
    assert time.monotonic() - started < 60  # the grandchild sleeps for 300
    pid, word = tail[-1].split()
    assert word == "done"
    assert wait_until(lambda: not alive(int(pid)))
    assert f"process {pid} (sleep) was started by the stage and still ran after it" in caplog.text


def test_the_status_of_a_child_counts_also_where_a_grandchild_keeps_its_output_open() -> None:
    with pytest.raises(ChildFailedError, match=r"status 3; its last lines:\n\d+ done"):
        run_child(python(GRANDCHILD + "raise SystemExit(3)"), ONE, no_progress, 60.0)


def test_a_timeout_ends_a_child_that_ignores_sigterm_and_what_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.processes.launch.TERM_GRACE_SECONDS", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
    pids: list[float] = []
    code = GRANDCHILD.replace("print(", "print('@progress', ").replace("'done'", "'2 pids'") + deaf
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="ran past 4"):
        run_child(python(code), ONE, lambda done, total, unit: pids.append(done), 4.0)
    assert time.monotonic() - started < 60
    assert len(pids) == 1
    assert not alive(int(pids[0]))


def test_a_child_that_closes_its_output_is_waited_for_as_long_as_it_may_run() -> None:
    quiet = (
        "import os, sys, time; print('so far', flush=True); os.close(1); os.close(2); "
        "time.sleep({}); os._exit(4)"
    )
    with pytest.raises(ChildFailedError, match="status 4"):
        run_child(python(quiet.format(1)), ONE, no_progress, 60.0)
    with pytest.raises(TimeoutError, match="ran past 1"):
        run_child(python(quiet.format(300)), ONE, no_progress, 1.0)


def test_all_that_a_child_wrote_before_its_end_is_read() -> None:
    seen: list[float] = []
    code = (
        "print('\\n'.join(f'@progress {n} 4000 ä' for n in range(4000)) + '\\r\\nhalf\\rlast ä', "
        "end='', flush=True)"
    )
    assert run_child(python(code), ONE, lambda done, *_: seen.append(done), None) == ["half", "last ä"]
    assert seen == list(range(4000))


def write_module(folder: Path, body: str) -> str:
    (folder / "job_module.py").write_text(
        "import os\nfrom schemas.evaluate import EvaluateSpec\nfrom schemas.files import FileRef\n"
        "from stages.processes.launch import job_of\nrank = int(os.environ.get('RANK', '0'))\n" + body
    )
    return "job_module"


def test_a_module_under_torchrun_gets_its_job_and_leaves_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    body = (
        "with job_of(EvaluateSpec) as (job, leave):\n    if rank == 0: leave(job.derive(scoring="
        "job.scoring.derive(stride=int(os.environ['WORLD_SIZE']))))\n"
    )
    module = write_module(tmp_path, body)
    job = EvaluateSpec(scoring=ScoringSettings(batch_tokens=4_097), compute=TWO)
    result = launch_module(module, job, EvaluateSpec, tmp_path, TWO, no_progress, None)
    assert result == job.derive(scoring=job.scoring.derive(stride=2))
    assert [path.name for path in tmp_path.iterdir()] == ["job_module.py"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "with job_of(EvaluateSpec) as (job, leave): leave(FileRef(path='a', num_bytes=-1, "
            "sha256='0' * 64))",
            r"handed over .*: FileRef\.num_bytes = -1",
        ),
        ("with job_of(FileRef) as (job, leave): leave(job)", r"handed over .*: FileRef\.path"),
    ],
    ids=["result", "job"],
)
def test_a_job_or_a_result_that_is_none_of_its_type_is_named_by_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    module = write_module(tmp_path, body)
    with pytest.raises(StageError, match=message):
        launch_module(module, EvaluateSpec(), FileRef, tmp_path, ONE, no_progress, None)


def test_a_result_of_another_type_than_the_stage_asked_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    module = write_module(tmp_path, "with job_of(EvaluateSpec) as (job, leave): leave(job)")
    with pytest.raises(ValidationError, match="FileRef"):
        launch_module(module, EvaluateSpec(), FileRef, tmp_path, ONE, no_progress, None)


def test_a_permanent_error_in_a_process_arrives_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    body = (
        "from schemas.errors import StageError\nwith job_of(EvaluateSpec):\n    raise "
        "StageError('the loss is nan')\n"
    )
    module = write_module(tmp_path, body)
    with pytest.raises(StageError, match="the loss is nan"):
        launch_module(module, EvaluateSpec(), EvaluateSpec, tmp_path, ONE, no_progress, None)


CALLER = """
import sys
from schemas.compute_settings import ComputeSettings
from pathlib import Path
from stages.processes.launch import run_ranks
compute = ComputeSettings(num_processes=2, threads_per_process=1)
run_ranks(sys.argv[1:3], Path(sys.argv[2]).parent, compute, lambda *p: None, None)
"""
RANK = """
import os, sys, time
from pathlib import Path
(Path(sys.argv[1]) / os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(300)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ranks_die_with_the_caller_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    script, pids = tmp_path / "rank.py", tmp_path / "pids"
    script.write_text(RANK)
    pids.mkdir()
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(script), str(pids)], start_new_session=True)
    assert wait_until(lambda: len([p for p in pids.iterdir() if p.read_text()]) == 2)
    ranks = [int(path.read_text()) for path in pids.iterdir()]
    caller.send_signal(how)
    caller.wait(30)
    assert wait_until(lambda: not any(alive(rank) for rank in ranks))


@pytest.mark.parametrize(("compute", "told"), [(ONE, "1 alone"), (TWO, "2 under torchrun")])
def test_torchrun_starts_several_processes_and_none_leaves_a_file(
    compute: ComputeSettings, told: str, tmp_path: Path
) -> None:
    folder = tmp_path / "Lager, mit = und : im Namen"
    folder.mkdir()
    (tmp_path / "rank.py").write_text(
        "import os\nunder = 'under torchrun' if 'TORCHELASTIC_RUN_ID' in os.environ else 'alone'\n"
        "os.write(1, f\"{os.environ.get('WORLD_SIZE', '1')} {under}\\n\".encode())"  # whole lines
    )
    assert run_ranks([str(tmp_path / "rank.py")], folder, compute, no_progress, None)[-1] == told
    assert list(folder.iterdir()) == []
