"""A process of the command line makes itself fit for work, or says within a second why it cannot.

Real processes.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIT = "from stages.processes.own_process import *\nimport sys, os, signal\n"


def python(
    code: str,
    cwd: Path = ROOT,
    before: Callable[[], Any] | None = None,
    text: bool = True,
    **environment: str,
) -> Any:
    """Run `code` with this checkout importable, whatever the working folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LC_ALL", "LANG", "PYTHONUTF8", "PYTHONIOENCODING")
    }
    return subprocess.run(
        [sys.executable, "-c", FIT + code],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        preexec_fn=before,
        capture_output=True,
        text=text,
        timeout=60,
    )


def refusal(**given: Any) -> str:
    """What `surroundings` refuses with."""
    code = "try: surroundings()\nexcept SpecError as error: print(error); sys.exit(2)"
    done = python(code, **given)
    assert done.returncode == 2, (done.stdout, done.stderr)
    return done.stdout


@pytest.mark.parametrize(
    "surroundings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_characters_that_an_encoding_lacks_become_plain_ones_and_no_minus_is_lost(
    surroundings: dict[str, str],
) -> None:
    text, minus = ascii("−2.45 % × 3 … für → 漢"), ascii("−1")
    code = f"standard_streams(); print({text}); print({minus}, file=sys.stderr)"
    done = python(code, **surroundings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-2.45 % x 3 ... fur > ?\n", "-1\n")


def test_a_path_that_is_no_text_is_printed_as_its_bytes() -> None:
    done = python(
        "standard_streams(); print(os.fsdecode(b'/tmp/\\xff')); print('ü')",
        text=False,
        PYTHONIOENCODING="utf-8",
    )
    assert (done.returncode, done.stdout) == (0, b"/tmp/\xff\n\xc3\xbc\n")


def test_json_stays_exact_where_the_output_is_ascii() -> None:
    code = f"standard_streams()\nfrom flows.cli.base import print_json\nprint_json({{'a': {'−ü'!a}}})"
    assert python(code, PYTHONIOENCODING="ascii").stdout == '{\n "a": "\\u2212\\u00fc"\n}\n'


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_stream_is_replaced_before_another_file_takes_its_place(
    closed: tuple[int, ...], tmp_path: Path
) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    out = tmp_path / "opened"
    code = (
        f"standard_streams(); f = open({str(out)!r}, 'w'); f.write(str(f.fileno())); f.close(); "
        "print('x'); print('y', file=sys.stderr)"
    )
    assert python(code, before=close).returncode == 0
    assert int(out.read_text()) > 2


def test_the_program_ends_quietly_once_the_reader_of_its_output_has_gone() -> None:
    code = "standard_streams()\ntry:\n    while True: print('x' * 1000)\nfinally: sys.stdout.flush()"
    writer = subprocess.Popen(
        [sys.executable, "-c", FIT + code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    said = writer.stderr.read()
    assert (writer.wait(30), said) == (141, b"")


def test_work_goes_on_once_the_reader_of_its_messages_has_gone(tmp_path: Path) -> None:
    code = (
        "standard_streams()\nfor _ in range(100): print('x' * 10_000, file=sys.stderr)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close(); sys.exit(5)"
    )
    writer = subprocess.Popen([sys.executable, "-c", FIT + code], cwd=ROOT, stderr=subprocess.PIPE)
    assert writer.stderr is not None
    writer.stderr.read(10)
    writer.stderr.close()
    assert writer.wait(30) == 5
    assert (tmp_path / "done").exists()


def test_a_full_disk_under_the_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "--help"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "fairway: standard output cannot be written: No space left on device\n",
    )


def test_the_command_line_ends_like_other_tools_before_a_closed_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    assert "the working folder is gone" in refusal(cwd=gone, before=gone.rmdir)


def test_missing_certificates_are_named_with_their_variable(tmp_path: Path) -> None:
    assert "SSL_CERT_FILE = /nowhere" in refusal(SSL_CERT_FILE="/nowhere")
    assert "PREFECT_API_SSL_CERT_FILE" in refusal(PREFECT_API_SSL_CERT_FILE=str(tmp_path))


def limit_files(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    code = "import resource; surroundings(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    assert python(code, before=limit_files(256, 1000)).stdout == "1000\n"
    assert python(code, before=limit_files(256, 256)).stdout == "256\n"
    assert "ulimit -n = 100" in refusal(before=limit_files(64, 100))


def test_no_leftover_of_a_scheduler_stays_and_warnings_are_no_errors() -> None:
    code = (
        "import warnings; surroundings(); warnings.warn('x'); print(sorted({'RANK', "
        "'OMP_NUM_THREADS', 'PYTHONWARNINGS'} & {*os.environ}))"
    )
    assert python(code, RANK="3", OMP_NUM_THREADS="1", PYTHONWARNINGS="error").stdout == "[]\n"


@pytest.mark.parametrize("folder", ["missing", "a file"])
def test_a_folder_for_temporary_files_that_is_none_is_passed_over(folder: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    done = python("surroundings(); print(tempfile.gettempdir())", TMPDIR=str(tmp_path / folder))
    assert done.returncode == 0
    assert str(tmp_path / folder) not in done.stdout


def test_no_folder_for_temporary_files_at_all_is_named() -> None:
    code = (
        "def nothing(): raise FileNotFoundError(2, 'No usable temporary directory found')\n"
        "tempfile._get_default_tempdir = nothing\ntry: surroundings()\nexcept SpecError as error: "
        "print(error)"
    )
    assert "Set TMPDIR to one" in python(code).stdout


def test_a_user_without_a_home_gets_one_for_the_time_of_the_command() -> None:
    unknown = ["unshare", "-U", "--map-user=12345"]
    if shutil.which("unshare") is None or subprocess.run([*unknown, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody be another user in a namespace of his own")
    code = FIT + "surroundings(); print(Path.home(), Path.home().is_dir())"
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [*unknown, sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    home, there = done.stdout.split()
    assert there == "True"
    assert not Path(home).exists()


def test_a_terminal_that_closes_interrupts_once_and_not_under_nohup() -> None:
    code = (
        "standard_streams()\ntry:\n    with hangup_interrupts():\n        os.kill(os.getpid(), "
        "signal.SIGHUP); print('went on')\n"
        "except KeyboardInterrupt: print('ended')"
    )
    assert python(code).stdout == "ended\n"
    assert python(code, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)).stdout == "went on\n"
