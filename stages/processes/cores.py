"""The CPU cores that this process may use: those of its affinity mask, up to the container's CPU quota."""

import os
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Whole cores, at least one."""
    return max(1, int(min(len(_mask()), cpu_quota())))


def idle_cores(look_seconds: float) -> float:
    """How many usable cores are idle during the next `look_seconds`; at most the container's quota."""
    busy = psutil.cpu_percent(look_seconds, percpu=True)
    idle = sum(1 - busy[core] / 100 for core in _mask() if core < len(busy))
    return min(idle, cpu_quota())


def cpu_quota() -> float:
    """CPU seconds a second that this process's control groups allow; infinity where none limits it."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # no control groups
        return float("inf")
    quotas = [float("inf")]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            quotas += [_quota_of(folder / "cpu.max") for folder in _up(CGROUPS, path)]
        elif "cpu" in controllers.split(","):
            folders = [folder for mount in ("cpu", controllers) for folder in _up(CGROUPS / mount, path)]
            quotas += [
                _quota_of(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us") for folder in folders
            ]
    return min(quotas)


def _mask() -> set[int]:
    """Numbers of the cores that the kernel may run this process on."""
    return os.sched_getaffinity(0)


def _up(mount: Path, path: str) -> list[Path]:
    """The group's folder and those above it: a container may see its own group as the root, under another
    path.
    """
    group = mount / path.lstrip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def _quota_of(*files: Path) -> float:
    """Quota over period, both in microseconds: two words of one file, or a file each."""
    try:
        quota, period = " ".join(file.read_text(encoding="utf-8") for file in files).split()
    except (OSError, ValueError):  # this group sets no limit
        return float("inf")
    return float("inf") if quota in ("max", "-1") else int(quota) / int(period)
