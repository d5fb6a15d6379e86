"""A training on several machines by srun: python -m stages.processes.slurm FOLDER TOKEN

srun starts one task on each machine, and ends the others when one fails. After the loss of a machine it would
wait until the cluster notices (SlurmdTimeout, by default 300 s), although nothing trains any more. So this
program ends srun soon after a machine has told that its processes failed. It also gives back the allocation
that an earlier, killed try of this training left, because the next one would wait for its machines.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from schemas.compute_settings import ComputeSettings
from schemas.errors import FairwayError
from stages.processes.launch import guarded, leave_error
from stages.processes.meeting import LOOK_SECONDS, Meeting, StaleTryError
from stages.processes.process_tree import end_trees

WAIT_SECONDS = 5.0  # where all machines answer, srun ends within a second
_END_SECONDS = 2.0


def command(compute: ComputeSettings, meeting: Meeting) -> list[str]:
    """Inside of an allocation srun starts a step in it (SLURM_JOB_ID says so), outside it asks for one."""
    return [
        shutil.which("srun") or "srun",
        f"--nodes={compute.num_nodes}",
        f"--ntasks={compute.num_nodes}",
        "--ntasks-per-node=1",
        # Slurm would give each task one core.
        f"--cpus-per-task={compute.num_processes * compute.threads_per_process}",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        "--mpi=none",
        "--input=none",
        f"--job-name={job_name(meeting.folder)}",
        *(sys.executable, "-m", "stages.processes.node", "slurm", str(meeting.folder), meeting.token),
    ]


def main() -> None:
    meeting = Meeting(Path(sys.argv[1]), sys.argv[2])
    try:
        compute = meeting.order().compute
    except (FairwayError, StaleTryError) as error:
        if isinstance(error, FairwayError):
            leave_error(meeting.folder, error)
        sys.exit(f"launcher = slurm: {error}")
    _give_allocation_back(meeting.folder)
    srun = subprocess.Popen([*guarded("SIGTERM")[:-1], *command(compute, meeting)])
    sys.exit(_status_of(srun, meeting))


def _status_of(srun: subprocess.Popen, meeting: Meeting) -> int:
    """How srun ended; 1 where it had to be ended."""
    failed_at: float | None = None
    while (status := _ended_within(srun, LOOK_SECONDS)) is None:
        if failed_at is None and meeting.has_failed:
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > WAIT_SECONDS:
            print(f"srun still waits for a machine {WAIT_SECONDS:.0f} s after another one failed: ended")
            end_trees([srun], _END_SECONDS)
            _give_allocation_back(meeting.folder)
            return 1
    return abs(status)


def _ended_within(srun: subprocess.Popen, seconds: float) -> int | None:
    try:
        return srun.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def job_name(folder: Path) -> str:
    """The same for every try of the training whose files lie in `folder`, and for no other training."""
    return f"fairway-{hashlib.sha256(bytes(folder)).hexdigest()[:16]}"


def _give_allocation_back(folder: Path) -> None:
    """An allocation that a killed srun had asked for would stay. One of the user's own has another name."""
    if scancel := shutil.which("scancel"):
        subprocess.run([scancel, "--quiet", f"--name={job_name(folder)}"], check=False)


if __name__ == "__main__":
    main()
