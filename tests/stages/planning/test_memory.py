"""Estimates of memory against what was measured, and against what autograd keeps."""

from dataclasses import replace

import pytest
import torch

from presets import PRESETS
from schemas.compute_settings import ComputeSettings
from schemas.lora_settings import LoraSettings
from schemas.model_settings import ModelSettings
from schemas.qat_settings import QatSettings
from schemas.train_settings import DataSettings, TrainSettings
from stages.core.lora import DocumentLoras
from stages.core.model import GPT
from stages.planning.counts import lora_parameters
from stages.planning.memory import (
    PROCESS_BYTES,
    evaluation_memory,
    micro_batch,
    quantizing_memory,
    scoring_memory,
    training_memory,
)

GIB = 2**30
SMALL = ModelSettings(vocab_size=64, value_embedding_dim=16)


def _record(**compute: bool) -> TrainSettings:
    """The step of docs/gpu.md: 98,304 tokens on one GPU."""
    return TrainSettings(
        data=DataSettings(batch_tokens=98_304, sequence_length=2048, micro_batch_sequences=48),
        qat=QatSettings(start_lr_scale=0.5),
        compute=ComputeSettings(device="cuda", precision="bfloat16", **compute),
    )


@pytest.mark.parametrize(
    ("compute", "measured_gib"),
    [
        ({}, 19.7),
        ({"compile": True}, 18.4),
        ({"compile": True, "fused_kernels": True}, 15.0),
        ({"compile": True, "fused_kernels": True}, 15.3),
    ],
)
def test_a_step_on_a_gpu_is_within_15_per_cent_of_the_measured_peak(
    compute: dict[str, bool], measured_gib: float
) -> None:
    settings = _record(**compute)
    assert training_memory(settings).peak(micro_batch(settings)) / GIB == pytest.approx(
        measured_gib, rel=0.15
    )


def test_a_step_on_the_cpu_is_within_15_per_cent_of_the_recorded_peaks() -> None:
    """Peaks of the whole process, as earlier runs recorded them."""
    for preset, recorded in (("demo", 692_387_840), ("demo", 674_951_168), ("medium", 751_128_576)):
        settings = PRESETS[preset]().with_qat_grid().train
        settings = replace(settings, compute=replace(settings.compute, precision="bfloat16"))
        estimated = PROCESS_BYTES + training_memory(settings).peak(micro_batch(settings))
        assert estimated == pytest.approx(recorded, rel=0.15)


def test_the_micro_batch_that_is_named_fits_and_the_next_larger_does_not() -> None:
    memory = training_memory(_record())
    most = memory.largest_micro_batch(8 * GIB)
    assert memory.peak(most) <= 8 * GIB < memory.peak(most + 1)
    assert memory.largest_micro_batch(memory.fixed // 2) == 0


@pytest.mark.parametrize("form", [{}, {"leaky_slope": 0.5, "skip_gates": True}, {"loop_passes": 2}])
def test_what_autograd_keeps_is_what_the_estimate_lists(form: dict[str, float]) -> None:
    """On the CPU in float32: each storage once, weights left out. The estimate also holds the logits'
    gradients.
    """
    model = replace(
        SMALL, num_layers=6, model_dim=64, mlp_hidden=176, rope_dims=8, value_embedding_layers=(4, 5), **form
    )
    settings = TrainSettings(
        model=model,
        data=DataSettings(batch_tokens=1024, sequence_length=128, micro_batch_sequences=8),
        compute=ComputeSettings(precision="float32"),
        qat=QatSettings(start_lr_scale=0.0),
    )
    network = GPT(model)
    network.init_weights(0)
    own = {param.untyped_storage().data_ptr() for param in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 64, (8, 129))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(ids[:, :-1], ids[:, 1:])
    assert loss.requires_grad
    assert 8 * training_memory(settings).a_sequence == pytest.approx(sum(kept.values()), rel=0.2)


def test_test_time_training_counts_what_it_keeps_for_each_document() -> None:
    """The LoRAs as they are made; fewer documents side by side need less."""
    spec = PRESETS["winner-1gpu"]()
    on = spec.evaluate.derive(test_time_training=LoraSettings(on=True))
    model = replace(SMALL, num_layers=3, loop_passes=2, loop_layers=(1,), value_embedding_dim=0, xsa_layers=0)
    for lora in (LoraSettings(rank=4), LoraSettings(rank=3, targets=("q", "v", "mlp"))):
        made = DocumentLoras(GPT(model), lora, 2).parameters
        assert 2 * lora_parameters(model, lora) == sum(param.numel() for param in made)
    plain, learning = (evaluation_memory(spec.train.model, each) for each in (spec.evaluate, on))
    assert plain == scoring_memory(spec.train.model, spec.evaluate.scoring, spec.evaluate.compute)
    assert 40 * GIB < learning < 80 * GIB
    fewer = on.derive(scoring=on.scoring.derive(batch_tokens=on.scoring.batch_tokens // 2))
    assert evaluation_memory(spec.train.model, fewer) == pytest.approx(learning / 2, rel=0.05)


def test_a_quantizer_that_reads_text_needs_memory_for_every_hessian() -> None:
    record = PRESETS["record"]()
    plain = record.derive(quantize=PRESETS["reference"]().quantize)
    more = quantizing_memory(record, record.quantize) - quantizing_memory(plain, plain.quantize)
    hessians = 8 * 11 * (5 * 512**2 + 1408**2)
    assert more > 2 * hessians  # ecsq keeps their factors beside them
