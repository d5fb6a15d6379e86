"""A defined number of CPU threads for what a stage computes in the process that runs it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """torch computes with `count` CPU threads in this block, whatever the process has: sums over threads
    depend on their number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
