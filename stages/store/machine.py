"""Description of the machine: its CPU and GPUs, the limits that the environment sets, and the precision to
use.

Equal settings give equal bits on one kind of machine only. `machine_kind` defines the kind, which is part of
keys. Keys are made before any work, so nothing here imports torch: the CPU's flags come from /proc/cpuinfo,
torch's build from its files.
"""

import ast
import dataclasses
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from schemas.base import Schema
from schemas.compute_settings import ComputeSettings
from schemas.files import Machine
from stages.store.source import library_version

CPUINFO = Path("/proc/cpuinfo")
NVIDIA_SMI_SECONDS = 20.0

# oneDNN's names of instruction sets, the best first, and the flags that Linux shows for each (beside those of
# the sets below it).
ONEDNN_ISAS: dict[str, tuple[str, ...]] = {
    "AVX512_CORE_AMX_FP16": ("amx_fp16",),
    "AVX512_CORE_AMX": ("amx_tile", "amx_bf16", "amx_int8"),
    "AVX512_CORE_FP16": ("avx512_fp16",),
    "AVX512_CORE_BF16": ("avx512_bf16",),
    "AVX512_CORE_VNNI": ("avx512_vnni",),
    "AVX512_CORE": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "AVX2_VNNI_2": ("avx_ne_convert", "avx_vnni_int8"),
    "AVX2_VNNI": ("avx_vnni",),
    "AVX2": ("avx2",),
    "AVX": ("avx",),
    "SSE41": ("sse4_1",),
}
_WITH_BFLOAT16 = tuple(ONEDNN_ISAS)[: tuple(ONEDNN_ISAS).index("AVX512_CORE_BF16") + 1]
CPU_CAPS = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")
_ATEN_LEVELS = ("default", "avx2", "avx512")
# Environment variables that change numbers, beside the caps on instruction sets, which count by what they
# leave.
CPU_SWITCHES = (
    "DNNL_CPU_ISA_HINTS",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "OMP_DYNAMIC",
    "OMP_THREAD_LIMIT",
    "ONEDNN_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
)
GPU_SWITCHES = (
    "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "TORCHINDUCTOR_EMULATE_PRECISION_CASTS",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TRITON_F32_DEFAULT",
)


@dataclass(frozen=True)
class Cpu:
    """`capability` is the level of torch's own kernels, as torch.backends.cpu.get_cpu_capability() names it.
    `isa` is the instruction set of matrix products, as oneDNN names it. Both respect the limits of the
    environment, and are `unknown` if /proc does not say.
    """

    model: str
    vendor: str
    capability: str
    isa: str
    bfloat16: bool

    @property
    def name(self) -> str:
        """A short name for people: `AVX2`, `AVX-512 BF16, AMX`."""
        if self.isa == "unknown":
            return "unknown CPU"
        short = self.isa.removesuffix("_FP16") if "AMX" in self.isa else self.isa
        return short.replace("AVX512_CORE_AMX", "AMX").replace("AVX512_CORE", "AVX-512").replace("_", " ")


def read_cpu(cpuinfo: str, environment: Mapping[str, str]) -> Cpu:
    """The CPU that the text of /proc/cpuinfo describes, as torch may use it in this environment.

    Never raises.
    """
    first = cpuinfo.strip().split("\n\n")[0]
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())
    }
    if "flags" in fields:
        return _read_x86(fields, set(fields["flags"].split()), environment)
    if "Features" in fields:
        return _read_arm(fields, set(fields["Features"].split()), environment)
    name = platform.processor() or platform.machine() or "unknown"
    return Cpu(name, platform.machine(), "unknown", "unknown", bfloat16=False)


@cache
def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""


def this_cpu() -> Cpu:
    return read_cpu(_cpuinfo(), os.environ)


def _read_x86(fields: Mapping[str, str], flags: set[str], environment: Mapping[str, str]) -> Cpu:
    level = 0
    if {"avx512vl", "avx512bw", "avx512dq", "fma"} <= flags:
        level = 2
    elif {"avx2", "fma"} <= flags:
        level = 1
    cap = environment.get("ATEN_CPU_CAPABILITY", "")
    level = min(level, _ATEN_LEVELS.index(cap)) if cap in _ATEN_LEVELS else level
    isa = _best_isa(flags, environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or "")
    return Cpu(
        fields.get("model name", "unknown"),
        fields.get("vendor_id", "unknown"),
        _ATEN_LEVELS[level].upper(),
        isa,
        # A cap on torch's own kernels asks for the weaker machine, even without a cap on oneDNN.
        bfloat16=isa in _WITH_BFLOAT16 and level == 2,
    )


def _best_isa(flags: set[str], cap: str) -> str:
    """The best instruction set of which the CPU has all flags, at most `cap` if that is a known one."""
    names = list(ONEDNN_ISAS)
    allowed = names[names.index(cap.upper()) :] if cap.upper() in names else names
    return next((name for name in allowed if set(ONEDNN_ISAS[name]) <= flags), "unknown")


def _read_arm(fields: Mapping[str, str], features: set[str], environment: Mapping[str, str]) -> Cpu:
    part = f"ARM {fields.get('CPU implementer', '?')} {fields.get('CPU part', '?')}"
    best = "SVE" if "sve" in features and "ATEN_CPU_CAPABILITY" not in environment else "DEFAULT"
    return Cpu(
        fields.get("model name", part),
        part,
        best,
        "ARM BF16" if "bf16" in features else "ARM",
        "bf16" in features,
    )


@cache
def gpu_names(visible: str | None) -> tuple[str, ...]:
    """Models of the GPUs that CUDA_VISIBLE_DEVICES allows (`visible`; None: all), each once; empty if there
    are none.

    nvidia-smi names them, because torch would take memory on the first GPU for the life of this process.
    """
    if visible == "":
        return ()
    for choice in ([f"--id={visible}"], []) if visible else ([],):  # some names of devices only CUDA knows
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", *choice]
        try:
            listing = subprocess.run(
                command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return tuple(sorted({line.strip() for line in listing.stdout.splitlines() if line.strip()}))
    models = (
        re.search(r"^Model:\s*(.+)$", _text(path), re.M)
        for path in Path("/proc/driver/nvidia/gpus").glob("*/information")
    )
    return tuple(sorted({match[1].strip() for match in models if match}))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@cache
def torch_build() -> dict[str, str | None]:
    """`version`, `cuda` and `git_version` of the installed torch, without importing it; empty without
    torch.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    build: dict[str, str | None] = {}
    for statement in ast.parse(_text(Path(spec.origin).with_name("version.py"))).body:
        target = (
            statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        )
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            build[target.id.strip("_")] = value.value
    return {name: build.get(name) for name in ("version", "cuda", "git_version")}


def machine_kind(compute: ComputeSettings | None) -> str:
    """The kind of machine in one line: what must be equal for equal bits of what `compute` makes.

    None: for work on the CPU alone.
    """
    cpu, build = this_cpu(), torch_build()
    parts = [f"{cpu.vendor} {cpu.capability} {cpu.isa}", f"torch {build.get('version')}"]
    if compute is not None and (cores := _cores()) < compute.threads_per_process:
        parts.append(f"{cores} cores")  # MKL takes fewer threads then
    parts += [f"{name}={os.environ[name]}" for name in _switches(compute)]
    if _on_gpu(compute):
        gpus = ", ".join(gpu_names(os.environ.get("CUDA_VISIBLE_DEVICES"))) or "no GPU found"
        parts += [gpus, f"CUDA {build.get('cuda')}", f"triton {library_version('triton')}"]
    return "; ".join(parts)


def machine_in_words(compute: ComputeSettings) -> str:
    """The properties that decide the last digits, in the words of stages.core.distributed.machine_in_words,
    which asks torch.
    """
    cpu = this_cpu()
    name = (cpu.capability if cpu.capability in map(str.upper, _ATEN_LEVELS) else platform.machine()) + (
        " with bfloat16" if cpu.bfloat16 else ""
    )
    if compute.device == "cuda":
        name = ", ".join(gpu_names(os.environ.get("CUDA_VISIBLE_DEVICES"))) or "no GPU found"
    return f"{name}, torch {torch_build().get('version')}"


def this_machine(compute: ComputeSettings | None) -> Machine:
    """The machine as provenance, with the part that `compute` uses."""
    cpu, build = this_cpu(), torch_build()
    return Machine(
        kind=machine_kind(compute),
        cpu=cpu.model,
        capability=cpu.capability,
        isa=cpu.isa,
        cores=_cores(),
        precision=precision_note(compute) if compute else "",
        processes=compute.world_size if compute else None,
        threads=compute.threads_per_process if compute else None,
        gpus=gpu_names(os.environ.get("CUDA_VISIBLE_DEVICES")) if _on_gpu(compute) else (),
        cuda=build.get("cuda"),
        triton=library_version("triton"),
        torch=f"{build.get('version')} {build.get('git_version')}",
        python=platform.python_version(),
        switches={name: os.environ[name] for name in _switches(compute)},
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_gpu(compute: ComputeSettings | None) -> bool:
    return compute is not None and compute.device == "cuda"


def _switches(compute: ComputeSettings | None) -> Iterator[str]:
    return (
        name for name in (*CPU_SWITCHES, *(GPU_SWITCHES if _on_gpu(compute) else ())) if os.environ.get(name)
    )


def resolve_precision(value: Any) -> Any:
    """A spec with every `precision = auto` in it resolved for this machine; the very same object if there is
    none.
    """
    if isinstance(value, ComputeSettings):
        if value.precision != "auto":
            return value
        fits = value.device == "cuda" or this_cpu().bfloat16
        return replace(value, precision="bfloat16" if fits else "float32")
    if isinstance(value, Schema):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    else:
        return value
    resolved = {name: resolve_precision(item) for name, item in fields.items()}
    changes = {name: item for name, item in resolved.items() if item is not fields[name]}
    if not changes:
        return value
    return value.derive(**changes) if isinstance(value, Schema) else replace(value, **changes)


def precision_note(compute: ComputeSettings) -> str:
    """The precision, and what it means on this machine: `float32: this CPU (AVX2) has no bfloat16
    instructions`.
    """
    precision, cpu = resolve_precision(compute).precision, this_cpu()
    if compute.device == "cuda":
        return f"{precision}: on the GPU"
    if cpu.bfloat16:
        also = "" if precision == "bfloat16" else "also "
        return f"{precision}: this CPU ({cpu.name}) {also}has bfloat16 instructions"
    lacks = f"this CPU ({cpu.name}) has no bfloat16 instructions" if cpu.isa != "unknown" else "unknown CPU"
    return f"{precision}: {lacks}" + (
        ", so it will take many times as long as float32" if precision == "bfloat16" else ""
    )
