"""Run work in child processes: a job as job.json in, its result as result.json out.

Both are of declared types. The processes never outlive the caller.

A child prints log lines and `@progress DONE TOTAL UNIT` lines, and leaves result.json, or error.json for an
error that a retry cannot mend. Everything else that ends it is transient.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import ValidationError

from schemas.base import Schema, invalid_field
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError, StageError, StoppedError, StorageError, clear_storage_errors
from schemas.runtime import Progress
from stages.core.whole_files import write_whole
from stages.processes.child_output import ChildOutput
from stages.processes.cores import idle_cores
from stages.processes.meeting import refuse_stale_try
from stages.processes.process_tree import (
    LEFT_BEHIND_SECONDS,
    end_processes,
    end_trees,
    is_running,
    processes_with,
)
from stages.processes.stopping import stopping
from stages.processes.surroundings import for_children, importing_ours

log = logging.getLogger(__name__)

PROGRESS_MARK = "@progress "
TERM_GRACE_SECONDS = 12.0  # torchrun hands SIGTERM on to its ranks, and waits for them
# How training and scoring run best, unless the environment says otherwise. None of it changes a number.
# Large pages, and memory of freed tensors kept: a seventh of a training step on the CPU was page faults
# (docs/log.md).
MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"
    ":glibc.malloc.mmap_threshold=4294967296"
    ":glibc.malloc.trim_threshold=4294967296"
}
# OpenMP's threads at a barrier: on idle cores a short spin halves a training step, beside another busy
# program it doubles it, and OpenMP's own long spin makes it worse still
# (docs/decisions/0007-threads-spin-or-wait.md).
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "2000"}
WAIT = {"OMP_WAIT_POLICY": "PASSIVE"}
_MARK = "FAIRWAY_CHILD"  # each child's environment has another value; all that it starts inherit it
_LOOK_SECONDS = 0.25
_TAIL_LINES = 30
_MEMORY = Path("/dev/shm")
_MEETING_BYTES = 256 * 1024
_KINDS = {kind.__name__: kind for kind in (SpecError, StoppedError, StageError, StorageError)}

JobT = TypeVar("JobT", bound=Schema)
ResultT = TypeVar("ResultT", bound=Schema)
Runner = Callable[..., list[str]]
"""Runs a program in the processes that its `compute` asks for: `run_ranks`, or one with its parameters."""


class ChildFailedError(RuntimeError):
    """A child process ended without result and without saying that the error is permanent.

    Worth another try.
    """


def launch_module(
    module: str,
    job: Schema,
    result_type: type[ResultT],
    folder: Path,
    compute: ComputeSettings,
    progress: Progress,
    timeout: float | None,
    run: Runner | None = None,
) -> ResultT:
    """Run `python -m module JOB RESULT` by `run` (None: `run_ranks`); returns what its processes left.

    The module reads the job, and leaves a `result_type`, by `job_of`.
    Raises SpecError, StageError, StoppedError or StorageError as the child said, ChildFailedError or
    TimeoutError otherwise, and ValidationError for a result that is no `result_type`.
    """
    job_path, result_path, error_path = folder / "job.json", folder / "result.json", folder / "error.json"
    for stale in (result_path, error_path):
        stale.unlink(missing_ok=True)
    job_path.write_text(job.model_dump_json(), encoding="utf-8")
    try:
        program = ["-m", module, str(job_path), str(result_path)]
        (run or run_ranks)(program, folder, compute, progress, timeout, env=importing_ours(os.environ))
    except ChildFailedError:
        if error_path.exists():
            said = json.loads(error_path.read_text(encoding="utf-8"))
            raise _KINDS[said["kind"]](said["message"]) from None
        raise
    result = result_type.model_validate_json(result_path.read_bytes())
    for used in (job_path, result_path):
        used.unlink()
    return result


def run_ranks(
    program: Sequence[str],
    folder: Path,
    compute: ComputeSettings,
    progress: Progress,
    timeout: float | None,
    **options: Any,
) -> list[str]:
    """Run `-m module …` or a script in `compute.num_processes` processes of this machine, as `run_child`
    does.

    torchrun starts several. One process starts by itself, because torchrun would load PyTorch once more.

    Several find one another through files. By itself torchrun opens a port to the whole network for that,
    and believes what it is told there (it unpickles it). The files lie in memory, because torch waits for
    ever when their disk is full.
    """
    check_gpus(compute)
    if compute.num_processes == 1:
        return run_child([sys.executable, *program], compute, progress, timeout, **options)
    meeting = _meeting_place(folder)
    environment = {
        **options.pop("env", os.environ),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "RENDEZVOUS_FILE": str(meeting / "ranks"),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    try:
        command = [*_torchrun(compute, meeting / "agents"), *program]
        return run_child(command, compute, progress, timeout, env=environment, **options)
    finally:
        shutil.rmtree(meeting, ignore_errors=True)


def check_gpus(compute: ComputeSettings) -> None:
    """Raise SpecError where fewer GPUs are seen than processes are to have one: their own errors would be
    tried again.
    """
    if compute.device != "cuda":
        return
    import torch  # slow to import, and the CPU needs nothing of it here

    if (seen := torch.cuda.device_count()) < compute.num_processes:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"PyTorch {torch.__version__} sees {seen}" + (
            "" if shown is None else f" with CUDA_VISIBLE_DEVICES = {shown!r}"
        )
        raise SpecError(
            f"device = cuda, num_processes = {compute.num_processes}: each process needs a GPU, and {why}. "
            "Give --device cpu, fewer processes, or another CUDA_VISIBLE_DEVICES. As settings these are "
            "train.compute.device=cpu, the same of merge and evaluate, and quantize.calibration.device=cpu"
        )


def _meeting_place(folder: Path) -> Path:
    """A new folder with room for the ranks to meet: in memory, or in `folder` where /dev/shm is missing,
    closed or full.
    """
    # found again, and removed, after a kill
    name = f"fairway-{os.getuid()}-{hashlib.sha256(bytes(folder)).hexdigest()[:16]}"
    try:
        return _with_room(_MEMORY / name)
    except OSError as error:
        log.info("processes meet in the store, because %s takes no file (%s)", _MEMORY, error.strerror)
        return _with_room(folder / "rendezvous")


def _with_room(meeting: Path) -> Path:
    shutil.rmtree(meeting, ignore_errors=True)
    try:
        meeting.mkdir(mode=0o700)
        (meeting / "ranks").write_bytes(bytes(_MEETING_BYTES))  # a clear error where there is no room
        (meeting / "ranks").unlink()
    except OSError:
        shutil.rmtree(meeting, ignore_errors=True)
        raise
    return meeting


def _torchrun(compute: ComputeSettings, endpoint: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={uuid.uuid4()}",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={compute.num_processes}",
        "--no-python",
        *guarded("SIGKILL"),
    ]


def guarded(death_signal: str) -> list[str]:
    """Prefix of a Python command that gets `death_signal` when its parent ends."""
    return [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), death_signal, sys.executable]


@contextmanager
def job_of(job_type: type[JobT]) -> Iterator[tuple[JobT, Callable[[Schema], None]]]:
    """In a child, whose arguments are JOB and RESULT: gives the job and the function that leaves the result.

    Log lines go to the parent. Errors that have a name are left as error.json; a job or a result that is
    none of its type is a StageError, which names the field.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    job_path, result_path = Path(sys.argv[1]), Path(sys.argv[2])

    def leave(result: Schema) -> None:
        refuse_stale_try()
        write_whole(result_path, result.model_dump_json().encode())

    try:
        with clear_storage_errors(result_path.parent):
            yield job_type.model_validate_json(job_path.read_bytes()), leave
    except tuple(_KINDS.values()) as error:
        leave_error(result_path.parent, error)
        raise SystemExit(1) from error
    except ValidationError as error:
        message = f"cannot be handed over between the stage and its process: {invalid_field(error)}"
        leave_error(result_path.parent, StageError(message))
        raise SystemExit(1) from error


def leave_error(folder: Path, error: Exception) -> None:
    """In a child: tell the parent, whose job lies in `folder`, the named error that ends the work."""
    content = json.dumps({"kind": type(error).__name__, "message": str(error)}).encode()
    write_whole(folder / "error.json", content)


def say_progress(done: float, total: float, unit: str) -> None:
    """In a child: tell the parent how far the work is."""
    print(f"{PROGRESS_MARK}{done} {total} {unit}", flush=True)


def run_child(
    command: Sequence[str],
    compute: ComputeSettings,
    progress: Progress,
    timeout: float | None,
    **options: Any,
) -> list[str]:
    """Run a command with its lines logged and its progress reported; end its whole family on error,
    cancel or timeout.

    Returns the last lines. Raises ChildFailedError on a non-zero exit, TimeoutError after `timeout` seconds.
    """
    environment = child_environment(options.pop("env", os.environ), compute)
    mark = environment[_MARK] = str(uuid.uuid4())
    command = [*guarded("SIGTERM")[:-1], *command]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, env=environment, **options
    )
    output, tail = ChildOutput(process), deque[str](maxlen=_TAIL_LINES)
    try:
        with stopping.get().track(process):
            for line in output.lines(timeout):
                _handle(line, tail, progress)
        if not output.is_closed:
            _end_left_behind(mark)
    except BaseException:
        end_trees([process], TERM_GRACE_SECONDS)
        _end_left_behind(mark)
        raise
    finally:
        if process.stdout:
            process.stdout.close()
    status = process.returncode
    stopping.get().check()
    if status:
        ending = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        raise ChildFailedError(
            f"the stage's process ended with {ending}; its last lines:\n" + "\n".join(tail)
        )
    return list(tail)


def child_environment(environment: Mapping[str, str], compute: ComputeSettings) -> dict[str, str]:
    """`environment` for a process that computes, with memory and threads as they run best here."""
    given = for_children(environment)
    return {
        **MEMORY,
        **({} if {*SPIN_BRIEFLY, *WAIT} & {*given} else waiting(compute)),
        **given,
        "OMP_NUM_THREADS": str(compute.threads_per_process),
        "PYTHONUNBUFFERED": "1",
    }


def waiting(compute: ComputeSettings) -> dict[str, str]:
    """How threads should wait at barriers, by what the cores that we may use do just now: SPIN_BRIEFLY
    where those to be used are idle.
    """
    wanted = compute.num_processes * compute.threads_per_process
    return SPIN_BRIEFLY if idle_cores(_LOOK_SECONDS) > wanted - 0.5 else WAIT


def _end_left_behind(mark: str) -> None:
    """End what an ended child left running. Only the environment still tells who started it."""
    left = [process for process in processes_with(_MARK, mark) if is_running(process)]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            log.warning(
                "process %d (%s) was started by the stage and still ran after it: ended",
                process.pid,
                process.name(),
            )
    end_processes(left, LEFT_BEHIND_SECONDS)


def _handle(line: str, tail: deque[str], progress: Progress) -> None:
    if line.startswith(PROGRESS_MARK):
        done, total, unit = line.removeprefix(PROGRESS_MARK).split(" ", 2)
        progress(float(done), float(total), unit)
    elif line:
        tail.append(line)
        log.info("%s", line)
