"""Memory and disk that this machine has to give."""

import subprocess
from pathlib import Path

import psutil

NVIDIA_SMI_SECONDS = 20.0
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def free_main_memory() -> int:
    """Bytes that a new process may take, as the kernel estimates, at most what the container allows."""
    available = psutil.virtual_memory().available
    for file in MEMORY_LIMITS:
        try:
            return min(available, int(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return available


def gpu_memory() -> int | None:
    """Bytes of the smallest GPU that nvidia-smi lists; None where it lists none.

    Not torch: it would take memory on the GPU for the life of this process.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True
        ).stdout
        return min(int(line) for line in listed.splitlines() if line.strip()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def free_disk(folder: Path) -> int:
    """Bytes free where the folder lies."""
    return psutil.disk_usage(str(folder)).free
