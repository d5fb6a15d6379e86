"""Settings of device, processes and precision.

Standard library only: this class ships in the submission.
"""

from dataclasses import dataclass
from typing import Literal

from schemas.settings_base import Settings, setting


@dataclass(frozen=True)
class ComputeSettings(Settings):
    """What computes. Part of the identity: another device, precision or split gives other bits.

    `auto` is resolved before anything is keyed or computed: stages.store.machine.resolve_precision.
    """

    device: Literal["cpu", "cuda"] = setting("cpu", "where the model runs")
    num_processes: int = setting(1, "processes on each machine", minimum=1, maximum=8)
    num_nodes: int = setting(1, "machines that train together", minimum=1, maximum=256, later=True)
    threads_per_process: int = setting(2, "CPU threads of each process", minimum=1, maximum=256)
    precision: Literal["auto", "bfloat16", "float32"] = setting(
        "auto",
        (
            "matrix products; master weights stay float32. auto: bfloat16 on a GPU and on a CPU with "
            "instructions for it, else float32"
        ),
    )
    compile: bool = setting(False, "torch.compile the model")
    fused_kernels: bool = setting(False, "train with our own Triton kernels; needs a Hopper GPU and bfloat16")

    @property
    def world_size(self) -> int:
        """Processes on all machines."""
        return self.num_nodes * self.num_processes

    def check(self) -> None:
        if self.fused_kernels and (self.device != "cuda" or self.precision == "float32"):
            raise ValueError(
                "fused_kernels = true: they are for device = 'cuda' and precision = 'bfloat16', not "
                f"{self.device!r} and {self.precision!r}; leave fused_kernels false"
            )
