"""Which machine computes, which precision suits it, and that both are part of what a result is known by."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from presets import PRESETS, load_preset
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError, StageError
from schemas.merge import MergedModel
from schemas.stages import STAGES
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train_settings import TrainSettings
from stages.core.distributed import compute_dtype
from stages.packaging.script import recipe_source
from stages.store import machine
from stages.store.keys import stage_key
from stages.store.machine import (
    CPU_CAPS,
    CPU_SWITCHES,
    machine_kind,
    precision_note,
    read_cpu,
    resolve_precision,
    this_machine,
)

AS_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
AVX2 = "fma avx2 avx sse4_1"
SKYLAKE = f"{AVX2} avx512f avx512bw avx512vl avx512dq"
COOPER_LAKE = f"{SKYLAKE} avx512_vnni avx512_bf16"
SAPPHIRE_RAPIDS = f"{COOPER_LAKE} avx512_fp16 amx_tile amx_bf16 amx_int8"


def x86(flags: str) -> str:
    core = f"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Some CPU\nflags\t\t: {flags}\n"
    return f"{core}\n{core}"


@pytest.mark.parametrize(
    ("flags", "environment", "capability", "isa", "bfloat16"),
    [
        (SAPPHIRE_RAPIDS, {}, "AVX512", "AVX512_CORE_AMX", True),
        (COOPER_LAKE, {}, "AVX512", "AVX512_CORE_BF16", True),
        (SKYLAKE, {}, "AVX512", "AVX512_CORE", False),
        (AVX2, {}, "AVX2", "AVX2", False),
        ("sse4_1", {}, "DEFAULT", "SSE41", False),
        ("", {}, "DEFAULT", "unknown", False),
        (SAPPHIRE_RAPIDS, AS_AVX2, "AVX2", "AVX2", False),
        (SAPPHIRE_RAPIDS, {"ATEN_CPU_CAPABILITY": "avx2"}, "AVX2", "AVX512_CORE_AMX", False),
        (SAPPHIRE_RAPIDS, {"ATEN_CPU_CAPABILITY": "default"}, "DEFAULT", "AVX512_CORE_AMX", False),
        (SAPPHIRE_RAPIDS, {"ATEN_CPU_CAPABILITY": "nonsense"}, "AVX512", "AVX512_CORE_AMX", True),
        (AVX2, {"ATEN_CPU_CAPABILITY": "avx512"}, "AVX2", "AVX2", False),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "AVX512", "AVX512_CORE_BF16", True),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, "AVX512", "AVX512_CORE_VNNI", False),
        (SAPPHIRE_RAPIDS, {"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, "AVX512", "AVX512_CORE", False),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "AVX512", "AVX512_CORE_AMX", True),
    ],
)
def test_flags_and_caps_decide_what_a_cpu_is_taken_for(
    flags: str, environment: Mapping[str, str], capability: str, isa: str, bfloat16: bool
) -> None:
    cpu = read_cpu(x86(flags), environment)
    assert (cpu.capability, cpu.isa, cpu.bfloat16) == (capability, isa, bfloat16)
    assert (cpu.model, cpu.vendor) == ("Some CPU", "GenuineIntel")


def test_arm_and_what_is_not_linux() -> None:
    graviton = read_cpu(
        "processor\t: 0\nFeatures\t: fp asimd sve bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n", {}
    )
    assert (graviton.vendor, graviton.bfloat16) == ("ARM 0x41 0xd40", True)
    assert not read_cpu("Features\t: fp asimd\n", {}).bfloat16
    for text in ("", "nonsense", "a : b"):
        unknown = read_cpu(text, {})
        assert (unknown.isa, unknown.name, unknown.bfloat16) == ("unknown", "unknown CPU", False)


@pytest.mark.parametrize(
    "environment", [{}, AS_AVX2, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}]
)
def test_torch_sees_the_same_machine(environment: dict[str, str]) -> None:
    code = (
        "import json, sys; from stages.store import machine; "
        "from schemas.compute_settings import ComputeSettings; "
        "cpu = machine.this_cpu();words = machine.machine_in_words(ComputeSettings()); build = "
        "machine.torch_build(); early = 'torch' in sys.modules;import torch; from stages.core import "
        "distributed as processes;print(json.dumps([early, [cpu.capability, cpu.bfloat16, words, "
        "build],[torch.backends.cpu.get_cpu_capability(), processes.cpu_multiplies_bfloat16(), "
        "processes.machine_in_words('cpu'),{'version': torch.__version__, 'cuda': torch.version.cuda, "
        "'git_version': torch.version.git_version}]]))"
    )
    plain = {name: value for name, value in os.environ.items() if name not in CPU_CAPS}
    told = subprocess.run(
        [sys.executable, "-c", code], env=plain | environment, check=True, capture_output=True, text=True
    )
    torch_was_needed, ours, of_torch = json.loads(told.stdout)
    assert not torch_was_needed
    assert ours == of_torch


def on_cpu(monkeypatch: pytest.MonkeyPatch, flags: str, **environment: str) -> None:
    for name in (*CPU_CAPS, *CPU_SWITCHES):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "_cpuinfo", lambda: x86(flags))


@pytest.mark.parametrize(("flags", "precision"), [(SAPPHIRE_RAPIDS, "bfloat16"), (AVX2, "float32")])
def test_auto_is_what_the_cpu_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    on_cpu(monkeypatch, flags)
    spec = resolve_precision(load_preset("demo"))
    assert {section.compute.precision for section in (spec.train, spec.merge, spec.evaluate)} == {precision}
    assert resolve_precision(spec) is spec
    assert resolve_precision(load_preset("demo").package_spec()) == spec.package_spec()
    assert resolve_precision(ComputeSettings(device="cuda")).precision == "bfloat16"
    assert resolve_precision(ComputeSettings(precision="bfloat16")).precision == "bfloat16"
    assert "auto" not in json.dumps(spec.model_dump(mode="json"))


@pytest.mark.parametrize("preset", ["record", "reference"])
def test_the_presets_for_gpus_are_in_bfloat16_on_every_machine(
    monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    on_cpu(monkeypatch, AVX2)
    spec = resolve_precision(load_preset(preset))
    assert {section.compute.precision for section in (spec.train, spec.merge, spec.evaluate)} == {"bfloat16"}


def test_an_unsettled_precision_reaches_neither_a_key_nor_a_script_nor_the_core(
    tiny_tokens: TokenizedCorpus,
) -> None:
    unresolved = TrainSettings()
    assert unresolved.compute.precision == "auto"
    with pytest.raises(SpecError, match="train: precision = auto"):
        stage_key(STAGES["train"], unresolved, {"tokenized": tiny_tokens})
    with pytest.raises(StageError, match="precision = auto"):
        recipe_source(PRESETS["smoke"]().recipe())
    with pytest.raises(ValueError, match="precision = auto"):
        compute_dtype(unresolved.compute)


def test_the_note_says_which_precision_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    auto, emulated = ComputeSettings(), ComputeSettings(precision="bfloat16")
    on_cpu(monkeypatch, AVX2)
    assert precision_note(auto) == "float32: this CPU (AVX2) has no bfloat16 instructions"
    assert precision_note(emulated) == (
        "bfloat16: this CPU (AVX2) has no bfloat16 instructions, so it will take many times as long "
        "as float32"
    )
    on_cpu(monkeypatch, COOPER_LAKE)
    assert precision_note(auto) == "bfloat16: this CPU (AVX-512 BF16) has bfloat16 instructions"
    assert (
        precision_note(replace(auto, precision="float32"))
        == "float32: this CPU (AVX-512 BF16) also has bfloat16 instructions"
    )
    monkeypatch.setattr(machine, "_cpuinfo", lambda: "")
    assert precision_note(auto) == "float32: unknown CPU"


def test_the_kind_of_machine_is_part_of_every_key_that_it_can_change(
    monkeypatch: pytest.MonkeyPatch,
    tiny_tokens: TokenizedCorpus,
    tiny_merged: MergedModel,
    smoke_training: TrainSettings,
) -> None:
    def keys() -> tuple[str, str]:
        training = replace(smoke_training, compute=replace(smoke_training.compute, precision="float32"))
        inputs = {"merged": tiny_merged, "tokenized": tiny_tokens}
        return (
            stage_key(STAGES["train"], training, {"tokenized": tiny_tokens}),
            stage_key(STAGES["quantize"], load_preset("smoke").quantize, inputs),
        )

    found = []
    for flags, environment in ((SAPPHIRE_RAPIDS, {}), (AVX2, {}), (AVX2, {"MKL_CBWR": "COMPATIBLE"})):
        on_cpu(monkeypatch, flags, **environment)
        assert keys() == keys()
        found.append(keys())
    assert len({key for pair in found for key in pair}) == 6
    on_cpu(monkeypatch, AVX2, NVIDIA_TF32_OVERRIDE="0")  # nothing to the CPU
    assert keys() == found[1]


def test_stages_that_compute_are_keyed_by_the_machine_and_the_others_are_not() -> None:
    spec = resolve_precision(load_preset("smoke"))
    specs = {"tokenize_corpus": spec.tokenize, "package": spec.package_spec(), "audit": spec}
    names = {"train", "merge", "quantize", "package", "evaluate", "audit"}
    assert {name for name in STAGES if STAGES[name].compute(specs.get(name) or getattr(spec, name))} == names


def test_a_gpu_counts_with_its_model_and_what_drives_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\necho "$*" >> "$(dirname "$0")/asked"\n'
        'case "$*" in *--id=MIG*) exit 6;; *--id=1*) echo NVIDIA A100;; *) echo NVIDIA H100; echo '
        "NVIDIA H100;; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    machine.gpu_names.cache_clear()
    on_gpu = ComputeSettings(device="cuda")
    kinds = {}
    for visible in (None, "1", "MIG-1"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        kinds[visible] = machine_kind(on_gpu)
        assert this_machine(on_gpu).gpus == (("NVIDIA A100",) if visible == "1" else ("NVIDIA H100",))
    assert "NVIDIA H100; CUDA" in kinds[None]
    assert kinds[None] == kinds["MIG-1"] != kinds["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "no GPU found" in machine_kind(on_gpu)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert "; NVIDIA_TF32_OVERRIDE=0; " in machine_kind(on_gpu)
    before = len((tmp_path / "asked").read_text().splitlines())
    assert "H100" not in machine_kind(ComputeSettings())
    assert len((tmp_path / "asked").read_text().splitlines()) == before  # the CPU asks for no GPU
    machine.gpu_names.cache_clear()


def score_here(root: Path, tokenized: TokenizedCorpus, script: Path) -> str:
    """What the packaged program logs when it scores its blob on this machine as it is."""
    command = [
        sys.executable,
        "-I",
        str(script),
        "--eval",
        f"--tokenizer={root / tokenized.tokenizer.path}",
        "--stride=0",
    ]
    command.append(f"--val={root / tokenized.val_shards[0].path}")
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=120).stdout


def test_the_chain_runs_as_on_a_cpu_without_bfloat16(tmp_path: Path) -> None:
    """The chain up to the scores in processes that see AVX2 alone: in float32, keyed apart from a run on
    this CPU as it is.
    """
    environment = {name: value for name, value in os.environ.items() if name not in CPU_CAPS} | AS_AVX2
    command = [sys.executable, "-m", "tests.faults.chain", str(tmp_path), "--until", "evaluate"]
    command.append("train.schedule.max_steps=20")
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert told.returncode == 0, told.stderr
    records = {
        path.parts[-3]: json.loads(path.read_text()) for path in tmp_path.glob("stages/*/*/record.json")
    }
    assert set(records) == set(STAGES) - {"audit", "publish"}
    for name in ("train", "merge", "evaluate"):
        assert records[name]["spec"]["compute"]["precision"] == "float32"
        assert (
            records[name]["provenance"]["machine"]["precision"]
            == "float32: this CPU (AVX2) has no bfloat16 instructions"
        )
    assert {record["provenance"]["machine"]["capability"] for record in records.values()} == {"AVX2"}
    script = (tmp_path / records["package"]["result"]["script"]["path"]).read_text()
    assert "MADE_ON = 'AVX2, torch" in script
    assert "'auto'" not in script[script.index("RECIPE: Recipe | None = ") :].partition("MADE_ON")[0]
    tokenized = TokenizedCorpus.model_validate(records["tokenize_corpus"]["result"])
    said = score_here(tmp_path, tokenized, tmp_path / records["package"]["result"]["script"]["path"])
    assert "precision float32 on " in said
    assert ("the run was made on AVX2, torch" in said) == (
        not machine.machine_in_words(ComputeSettings()).startswith("AVX2,")
    )
    spec = resolve_precision(load_preset("smoke").with_qat_grid())
    training = replace(spec.train, schedule=replace(spec.train.schedule, max_steps=20))
    here = {
        precision: stage_key(
            STAGES["train"],
            replace(training, compute=replace(training.compute, precision=precision)),
            {"tokenized": tokenized},
        )
        for precision in ("bfloat16", "float32")
    }
    # MKL_ENABLE_INSTRUCTIONS tells even an AVX2 machine apart, unless it is set here too.
    emulated = AS_AVX2.items() <= os.environ.items()
    assert (records["train"]["provenance"]["key"] in here.values()) == emulated
