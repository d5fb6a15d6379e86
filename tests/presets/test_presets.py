from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import pytest

from presets import PRESETS, load_preset
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train_settings import DataSettings
from stages.core.model import GPT
from stages.core.trainer import Hooks, StepMetrics, Trainer
from stages.store.machine import resolve_precision


@pytest.mark.parametrize(
    ("preset", "first_loss"),
    [
        ("record", 6.93),
        ("reference", 6.93),
        pytest.param("winner", 9.01, marks=pytest.mark.slow),
        ("winner-1gpu", 9.01),
    ],
)
def test_the_big_presets_take_steps_on_a_cpu(
    preset: str, first_loss: float, tiny_tokens: TokenizedCorpus
) -> None:
    settings = load_preset(preset).train
    settings = replace(
        settings,
        # Orthogonalising 25 million weights takes most of a step; how well is tested elsewhere.
        optimizer=replace(settings.optimizer, newton_schulz_steps=1),
        schedule=replace(
            settings.schedule, max_steps=2, max_seconds=None, reserve_seconds=0.0, compile_warmup_steps=0
        ),
        data=DataSettings(
            batch_tokens=64, sequence_length=32, micro_batch_sequences=2, order=settings.data.order
        ),
        compute=resolve_precision(ComputeSettings(threads_per_process=2)),
    )
    rows: list[StepMetrics] = []
    trainer = Trainer(settings, [Path(ref.path) for ref in tiny_tokens.train_shards], Hooks(step=rows.append))
    trainer.run()
    assert rows[0].loss == pytest.approx(first_loss, abs=0.5)  # the logarithm of the vocabulary
    moved = {name for name, tensor in trainer.weights().items() if not tensor.equal(trainer.initial[name])}
    still = set(trainer.initial) - moved
    if preset == "reference":
        idle = {f"value_embedding.scales.{layer}" for layer in range(9)}
        assert still >= idle | {"value_embedding.table.weight", "value_embedding.proj.weight"}
    elif preset == "record":
        # Its projection starts at zero behind a zero projection, so it needs a second step.
        assert "value_embedding.proj.weight" in moved


@pytest.mark.parametrize("preset", list(PRESETS))
def test_qat_rounds_to_the_grid_that_the_exporter_uses(preset: str) -> None:
    spec = load_preset(preset)
    assert spec.train.qat.rules == spec.quantize.rules
    qat = spec.with_qat_grid().train.qat
    assert qat.grid == (spec.quantize.qat_grid if qat.start_lr_scale else "of_quantizer")


@pytest.mark.parametrize("preset", ["smoke", "demo"])
def test_every_averaged_snapshot_of_the_mended_presets_is_taken_under_qat(preset: str) -> None:
    spec = load_preset(preset)
    assert spec.merge.averaging.start_lr_scale <= spec.train.qat.start_lr_scale


def test_record_is_fitted_to_the_limit_and_the_reference_quantized_as_it_was() -> None:
    record, reference = load_preset("record"), load_preset("reference")
    assert record.quantize.limit_bytes == record.check_size.limit_bytes == 16_000_000
    assert reference.quantize.method == "reference"
    assert reference.quantize.limit_bytes is None
    assert [rule.format for rule in reference.quantize.rules] == ["fp16", "int8", "int8", "int6", "fp32"]
    assert reference.train.qat.start_lr_scale == 0.1


def test_the_winners_are_one_model_and_are_fitted_to_the_limit() -> None:
    eight, one = load_preset("winner"), load_preset("winner-1gpu")
    for spec in (eight, one):
        model = GPT(spec.train.model)
        assert sum(param.numel() for param in model.parameters()) == 35_945_592
        assert spec.quantize.method == "ecsq"
        assert spec.quantize.fit.limit_bytes == spec.check_size.limit_bytes == 16_000_000
    assert (eight.train.data.batch_tokens, eight.train.compute.num_processes) == (786_432, 8)
    data, compute = one.train.data, one.train.compute
    assert data.batch_sequences == data.micro_batch_sequences
    assert (data.batch_tokens, compute.num_processes) == (49_152, 1)
    same_but = {"data": eight.train.data, "compute": eight.train.compute, "optimizer": eight.train.optimizer}
    assert replace(one.train, **same_but) == replace(
        eight.train, schedule=replace(eight.train.schedule, max_seconds=300.0, reserve_seconds=0.0)
    )
    assert one.train.optimizer.muon_weight_decay > eight.train.optimizer.muon_weight_decay


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    assert get_close_matches("recrod", PRESETS)
    with pytest.raises(SpecError, match="preset = 'recrod': did you mean 'record'"):
        load_preset("recrod")
