"""Training on several machines: one process on each by the launcher of the cluster, and their end."""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError
from schemas.runtime import LauncherName, Progress, RunOptions
from stages.processes import kubernetes
from stages.processes.launch import Runner, run_child, run_ranks
from stages.processes.meeting import Meeting


@dataclass(frozen=True)
class Launcher:
    """What starts the machines, and the network interface by which their processes talk."""

    name: LauncherName
    interface: str | None = None


def runner_for(compute: ComputeSettings, options: RunOptions) -> Runner:
    """What starts the processes that `compute` asks for. Raises SpecError as `check_launcher` does."""
    check_launcher(compute, options)
    if compute.num_nodes == 1:
        return run_ranks
    return partial(_run_on_machines, Launcher(options.launcher, options.interface))


def check_launcher(compute: ComputeSettings, options: RunOptions) -> None:
    """Raise SpecError for a launcher that cannot work, or that nothing would use."""
    if options.launcher == "local":
        return
    if compute.num_nodes == 1:
        raise SpecError(
            f"launcher = {options.launcher}: train.compute.num_nodes = 1 trains on this machine; give "
            "--nodes, or leave --launcher out"
        )
    program = {"slurm": "srun", "kubernetes": "kubectl"}[options.launcher]
    if shutil.which(program) is None:
        raise SpecError(
            f"launcher = {options.launcher}: the program {program} is not on PATH; run this where "
            "it is installed"
        )
    if options.launcher == "kubernetes":
        kubernetes.template_path(os.environ)


def _run_on_machines(
    launcher: Launcher,
    program: Sequence[str],
    folder: Path,
    compute: ComputeSettings,
    progress: Progress,
    timeout: float | None,
    **options: Any,
) -> list[str]:
    """Run the program in `compute.num_processes` processes on each of `compute.num_nodes` machines, which
    share the folder's disk, as `run_child` does.
    """
    interface = launcher.interface or ("lo" if launcher.name == "local" else None)
    meeting = Meeting.call(folder, tuple(program), compute, interface)
    try:
        return run_child(command_of(launcher.name, meeting), compute, progress, timeout, **options)
    finally:
        meeting.end()  # also where the launcher could not end its processes


def command_of(launcher: LauncherName, meeting: Meeting) -> list[str]:
    """The command that starts `stages.processes.node` on each machine and ends when they do."""
    program = ["stages.processes.node", "local"] if launcher == "local" else [f"stages.processes.{launcher}"]
    return [sys.executable, "-m", *program, str(meeting.folder), meeting.token]
