"""Threads, devices and the process group of one torchrun process."""

import os

import torch
import torch.distributed as dist

from schemas.settings import ComputeSettings


def compute_dtype(settings: ComputeSettings) -> torch.dtype:
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def compute_with(threads: int, deterministic: bool) -> None:
    """CPU threads of this process, and whether every operation must give the same bits each time."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    # Deterministic mode would also write NaN into every new tensor, 5 % of a training step; we read nothing before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def join_processes(settings: ComputeSettings) -> tuple[int, int, torch.device]:
    """Set threads and device, join the process group when torchrun started several. Returns rank, world size, device."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    compute_with(settings.threads_per_process, deterministic=settings.device == "cpu")
    if settings.device == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    else:
        device = torch.device("cpu")
    if world > 1 and not dist.is_initialized():
        # NCCL keeps watching through its store, which a file is not made for; gloo only meets there.
        if settings.device == "cuda":
            dist.init_process_group("cpu:gloo,cuda:nccl")
        elif file := os.environ.get("RENDEZVOUS_FILE"):
            dist.init_process_group("gloo", store=dist.FileStore(file, world), rank=rank, world_size=world)
        else:
            dist.init_process_group("gloo")
    return rank, world, device
