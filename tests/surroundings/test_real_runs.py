"""The real program in bad surroundings: many at once in one run, and the slow ones one by one."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.store.runs import list_reports
from tests.faults.harness import start_fairway
from tests.surroundings.test_children import OF_A_SCHEDULER, SHADOW

ROOT = Path(__file__).parents[2]
PROXY = "http://127.0.0.1:9"


def bare() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "FAIRWAY_", "LC_", "PYTHON"))
    }


@pytest.mark.slow
def test_a_run_completes_among_all_of_it_at_once(tmp_path: Path) -> None:
    here, home, theirs = tmp_path / "cwd", tmp_path / "home", tmp_path / "path"
    for folder in (here, home / ".prefect", theirs):
        folder.mkdir(parents=True)
    for name in ("random.py", "stages.py", "torch.py"):
        (here / name).write_text(SHADOW)
    (home / ".prefect" / "profiles.toml").write_text('active = "x')
    proxies = {
        "HTTP_PROXY": PROXY,
        "HTTPS_PROXY": PROXY,
        "http_proxy": PROXY,
        "ALL_PROXY": "socks://127.0.0.1:9/",
        "NO_PROXY": "fd00::/8",
    }
    screen = {"COLUMNS": "40", "NO_COLOR": "1", "TERM": "dumb"}
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    python = {"PYTHONPATH": str(theirs), "PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1"}
    prefect = {
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_API_PORT": "4999",
        "PREFECT_SERVER_API_BASE_PATH": "/theirs",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://nobody@127.0.0.1:9/none",
        "PREFECT_SERVER_API_AUTH_STRING": "them:secret",
    }
    folders = {"HOME": str(home), "TMPDIR": str(tmp_path / "nowhere")}

    def narrow_down() -> None:
        os.umask(0o077)
        os.close(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from flows.cli.main import main; main()",
            "run",
            "--preset",
            "smoke",
            "--store",
            str(tmp_path / "store"),
        ],
        cwd=here,
        env={
            **bare(),
            **OF_A_SCHEDULER,
            **proxies,
            **screen,
            **plain,
            **python,
            **prefect,
            **folders,
            "PYTHONSAFEPATH": "1",
        },
        preexec_fn=narrow_down,
        capture_output=True,
        timeout=280,
    )
    said = done.stderr.decode("ascii", "backslashreplace")
    assert done.returncode == 0, said
    assert "gap quantized - merged" in done.stdout.decode("ascii")
    assert "profiles.toml: Prefect's profiles are left out" in said
    assert "Traceback" not in said
    [report] = list_reports(tmp_path / "store")
    assert report.size.fits
    open_to_others = [
        path
        for path in (tmp_path / "store").rglob("*")
        if not path.is_symlink() and path.stat().st_mode & 0o077
    ]
    assert open_to_others == []


@pytest.mark.slow
def test_a_terminal_that_closes_ends_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    options = ("--set", "train.schedule.max_steps=4000")
    for resumed in (False, True):
        run = start_fairway(tmp_path / "store", tmp_path / "logs", *options)
        run.wait_for(lambda run=run: "step " in run.text(), 200)
        time.sleep(3)
        os.kill(run.process.pid, signal.SIGHUP)
        assert run.process.wait(60) == 130
        assert run.gone_after(20) is not None
        assert ("going on from the checkpoint" in run.text()) == resumed
        assert "the same command resumes" in run.text()


@pytest.mark.slow
def test_a_run_whose_messages_nobody_reads_any_more_is_finished(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "run",
        "--preset",
        "smoke",
        "--store",
        str(tmp_path / "store"),
        "--json",
    ]
    with (tmp_path / "out").open("wb") as out:
        run = subprocess.Popen(command, cwd=ROOT, env=bare(), stdout=out, stderr=subprocess.PIPE)
    assert run.stderr is not None
    run.stderr.readline()
    run.stderr.close()
    assert run.wait(280) == 0
    assert len(list_reports(tmp_path / "store")) == 1
