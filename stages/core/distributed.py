"""Threads, devices and the process group of one torchrun process."""

import gc
import os
import platform
from datetime import timedelta

import torch
import torch.distributed as dist

from schemas.compute_settings import ComputeSettings

PATIENCE = timedelta(hours=2)


def compute_dtype(settings: ComputeSettings) -> torch.dtype:
    """Raises ValueError for `auto`, which would mean something else on each machine."""
    if settings.precision == "auto":
        raise ValueError(
            "precision = auto: has to be resolved, as bfloat16 or float32, before anything is computed"
        )
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products that torch and oneDNN may use; without them
    float32 is many times faster.
    """
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # oneDNN takes any AVX-512 for good enough.
    return not _on_x86() or (
        torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    )


def machine_in_words(device: str) -> str:
    """What decides the last digits: `AVX512 with bfloat16, torch 2.13.0+cpu`; of a GPU its model."""
    if device == "cuda":
        name = torch.cuda.get_device_name(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        name = torch.backends.cpu.get_cpu_capability() if _on_x86() else platform.machine()
        name += " with bfloat16" if cpu_multiplies_bfloat16() else ""
    return f"{name}, torch {torch.__version__}"


def _on_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def compute_with(threads: int, deterministic: bool) -> None:
    """CPU threads of this process, and whether every operation must give the same bits each time."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    # Deterministic mode would also write NaN into every new tensor, 5 % of a training step; we read nothing
    # before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def group_timeout(settings: ComputeSettings) -> timedelta:
    """How long a process waits for one that does not answer: longer than any process compiles."""
    return timedelta(seconds=600 if settings.device == "cuda" or settings.compile else 120)


def patient_group() -> dist.ProcessGroup | None:
    """All processes, on the CPU, for work whose length differs from one to another; None of a single one."""
    return dist.new_group(backend="gloo", timeout=PATIENCE) if dist.is_initialized() else None


def join_processes(
    settings: ComputeSettings, timeout: timedelta | None = None
) -> tuple[int, int, torch.device]:
    """Set threads and device, join the process group where there are several processes.

    An operation of the group fails after `timeout`; None: `group_timeout`. Returns rank, world size, device.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    compute_with(settings.threads_per_process, deterministic=settings.device == "cpu")
    if settings.device == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    else:
        device = torch.device("cpu")
    if world > 1 and not dist.is_initialized():
        timeout = timeout or group_timeout(settings)
        # NCCL keeps watching through its store, which a file is not made for; gloo only meets there.
        if settings.device == "cuda":
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout)
        elif file := os.environ.get("RENDEZVOUS_FILE"):
            store = dist.FileStore(file, world)
            dist.init_process_group("gloo", timeout=timeout, store=store, rank=rank, world_size=world)
        else:
            dist.init_process_group("gloo", timeout=timeout)
    return rank, world, device


def leave_processes() -> None:
    """End this process's part in the group, if it is in one. No model of a training is needed any more.

    DistributedDataParallel lies in a cycle of references, and its reducer must not be the last to hold the
    group: it would wait for gloo's threads with Python's lock, for which such a thread may wait itself.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
