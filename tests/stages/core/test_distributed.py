import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc, sys, weakref
import torch
import torch.distributed as dist
from torch import nn
from stages.core.distributed import leave_processes

gc.disable()  # only leave_processes may collect
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 1), rank=0, world_size=1)
network = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
network(torch.randn(2, 4)).sum().backward()
held, destroy = weakref.ref(network), dist.destroy_process_group
del network
assert held() is not None, "no cycle any more: leave_processes need not collect"
seen = []
dist.destroy_process_group = lambda: (seen.append(held() is None), destroy())
leave_processes()
leave_processes()  # nothing is left to leave
print(seen)
"""


def test_no_network_holds_the_group_when_a_process_leaves_it(tmp_path: Path) -> None:
    """Its reducer would end gloo's threads while it has Python's lock, and might wait for ever."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "store")], capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "[True]", result.stderr
