import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from schemas.errors import SpecError, StageError
from schemas.merge import MergedModel
from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import (
    CalibratedSettings,
    CalibrationSettings,
    Ecsq,
    FitSettings,
    Gptq,
    GptqLite,
    RoundToNearest,
)
from schemas.settings_base import from_dict
from schemas.tensor_formats import FormatRule
from schemas.tokenize_corpus import TokenizedCorpus
from stages.core.blob.packing import pack, unpack
from stages.core.calibrated.whole_model import quantize_state
from stages.core.calibrated.with_text import quantize_with_text
from stages.core.loader import TokenStream
from stages.quantize import quantize
from stages.quantizing.tensor_report import entropy_bits
from stages.store.workspace import DamagedFileError, Workspace

MakeWorkspace = Callable[[str], Workspace]
CALIBRATION = CalibrationSettings(num_sequences=16, sequence_length=32, batch_sequences=8)
SPEC = GptqLite(
    rules=(
        FormatRule("tok_emb.weight", "fp16"),
        FormatRule("blocks.0.*.weight", "int8"),
        FormatRule("*.weight", "int4"),
        FormatRule("*", "fp32"),
    )
)


def test_the_blob_holds_the_quantized_model_and_its_settings(
    tiny_merged: MergedModel,
    tiny_tokens: TokenizedCorpus,
    tiny_state: dict[str, torch.Tensor],
    make_workspace: MakeWorkspace,
) -> None:
    work = make_workspace("quantize")
    packed = quantize(SPEC, tiny_merged, tiny_tokens, work)
    blob = work.read(packed.blob).read_bytes()
    tensors, metadata = unpack(blob)
    assert metadata["method"] == "gptq_lite"
    assert from_dict(ModelSettings, metadata["model"]) == tiny_merged.model
    expected = quantize_state(tiny_state, SPEC)
    assert set(tensors) == set(tiny_state)
    assert all(torch.equal(tensors[tensor.name], tensor.dequantized()) for tensor in expected.tensors)
    assert packed.blob_bytes == packed.blob.num_bytes == len(blob)
    assert packed.num_parameters == sum(tensor.numel() for tensor in tiny_state.values())
    assert packed.stored_bytes == packed.header_bytes + sum(row.stored_bytes for row in packed.tensors)


def test_each_tensors_row_says_what_was_stored_and_at_what_error(
    tiny_merged: MergedModel,
    tiny_tokens: TokenizedCorpus,
    tiny_state: dict[str, torch.Tensor],
    make_workspace: MakeWorkspace,
) -> None:
    packed = quantize(SPEC, tiny_merged, tiny_tokens, make_workspace("quantize"))
    rows = {row.name: row for row in packed.tensors}
    tensors, _ = unpack(make_workspace("other").root.joinpath(packed.blob.path).read_bytes())
    for name, original in tiny_state.items():
        row, error = rows[name], (tensors[name].double() - original.double()).square().mean().sqrt().item()
        assert row.shape == tuple(original.shape)
        assert row.rms_error == pytest.approx(error, rel=1e-9)
        assert row.relative_error == pytest.approx(error / original.double().square().mean().sqrt().item())
        assert sum(share.num_rows for share in row.clips) == (
            original.size(0) if row.format.startswith("int") else 0
        )
        assert 0 < row.compressed_bytes < row.stored_bytes + 20
    clipped = rows["blocks.1.mlp.up.weight"]
    assert clipped.format == "int4"
    assert clipped.stored_bytes == 48 * 32 + 2 * 48
    assert clipped.rms_error < clipped.rms_error_round_to_nearest
    assert {share.clip_ratio for share in clipped.clips} <= set(SPEC.clip_candidates)
    assert len(clipped.clips) > 1
    assert clipped.entropy_bits <= math.log2(15)
    assert rows["smear.gate"].rms_error == 0
    assert rows["tok_emb.weight"].stored_bytes == 2 * 300 * 32


def test_plain_rounding_is_measured_beside_and_is_its_own_comparison(
    tiny_merged: MergedModel, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    searched = quantize(SPEC, tiny_merged, tiny_tokens, make_workspace("a"))
    plain = quantize(RoundToNearest(rules=SPEC.rules), tiny_merged, tiny_tokens, make_workspace("b"))
    assert searched.blob_bytes_round_to_nearest == plain.blob_bytes == plain.blob_bytes_round_to_nearest
    assert searched.blob_bytes != plain.blob_bytes
    assert all(row.rms_error == row.rms_error_round_to_nearest for row in plain.tensors)
    assert all(share.clip_ratio == 1 for row in plain.tensors for share in row.clips)


def test_equal_specs_and_weights_give_equal_bytes(
    tiny_merged: MergedModel, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    assert (
        quantize(SPEC, tiny_merged, tiny_tokens, make_workspace("a")).blob.sha256
        == quantize(SPEC, tiny_merged, tiny_tokens, make_workspace("b")).blob.sha256
    )


@pytest.mark.parametrize(("candidates", "verdict"), [((1.0,), "no gain"), (SPEC.clip_candidates, "mixed")])
def test_the_log_says_whether_the_search_gained_anything(
    candidates: tuple[float, ...],
    verdict: str,
    tiny_merged: MergedModel,
    tiny_tokens: TokenizedCorpus,
    make_workspace: MakeWorkspace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    quantize(
        dataclasses.replace(SPEC, clip_candidates=candidates),
        tiny_merged,
        tiny_tokens,
        make_workspace("quantize"),
    )
    assert caplog.messages[-1].endswith(verdict)


def test_the_figures_are_summed_with_the_threads_of_the_settings(
    tiny_merged: MergedModel,
    tiny_tokens: TokenizedCorpus,
    make_workspace: MakeWorkspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = set()

    def rms(values: torch.Tensor) -> float:
        seen.add(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr("stages.quantizing.tensor_report.root_mean_square", rms)
    before = torch.get_num_threads()
    for threads in (1, 3):
        calibration = dataclasses.replace(CALIBRATION, threads=threads)
        spec = Gptq(rules=SPEC.rules, calibration=calibration)
        quantize(spec, tiny_merged, tiny_tokens, make_workspace(f"quantize{threads}"))
        assert seen == {threads}
        seen.clear()
    assert torch.get_num_threads() == before


def test_rules_that_make_a_vector_an_integer_are_the_users_error(
    tiny_merged: MergedModel, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    spec = dataclasses.replace(SPEC, rules=(FormatRule("*", "int8"),))
    with pytest.raises(SpecError, match=r"quantize\.rules: .* only matrices"):
        quantize(spec, tiny_merged, tiny_tokens, make_workspace("quantize"))


def test_weights_that_no_format_holds_end_the_stage(
    tiny_merged: MergedModel,
    tiny_tokens: TokenizedCorpus,
    tiny_state: dict[str, torch.Tensor],
    make_workspace: MakeWorkspace,
) -> None:
    tiny_state["blocks.1.attn.k.weight"][0, 0] = math.nan
    work = make_workspace("other")
    save_file(tiny_state, work.out_dir / "x.safetensors")
    with pytest.raises(StageError, match=r"blocks\.1\.attn\.k\.weight holds values that are not finite"):
        quantize(
            SPEC,
            tiny_merged.derive(weights=work.ref(work.out_dir / "x.safetensors")),
            tiny_tokens,
            make_workspace("quantize"),
        )


def test_damaged_weights_are_not_read(
    tiny_merged: MergedModel, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    work = make_workspace("quantize")
    path = work.root / tiny_merged.weights.path
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DamagedFileError):
        quantize(SPEC, tiny_merged, tiny_tokens, work)


CODED = Ecsq(
    rules=(FormatRule("*.weight", "int8"), FormatRule("*", "fp32")),
    calibration=CALIBRATION,
)


@pytest.mark.parametrize(
    "spec", [CODED, Gptq(rules=SPEC.rules, calibration=CALIBRATION)], ids=["ecsq", "gptq"]
)
def test_the_stage_reads_the_training_split_alone_and_makes_the_bytes_that_the_program_makes(
    spec: CalibratedSettings,
    tiny_merged: MergedModel,
    tiny_tokens: TokenizedCorpus,
    tiny_state: dict[str, torch.Tensor],
    make_workspace: MakeWorkspace,
) -> None:
    no_val = tuple(shard.derive(path="/nonexistent/val.bin") for shard in tiny_tokens.val_shards)
    without_val = tiny_tokens.derive(
        val_shards=no_val, tokenizer=tiny_tokens.tokenizer.derive(path="/nonexistent/tokenizer")
    )
    work = make_workspace("quantize")
    packed = quantize(spec, tiny_merged, without_val, work)
    metadata = {"model": tiny_merged.model.as_metadata(), "method": spec.method}
    here = quantize_with_text(tiny_state, tiny_merged.model, train_stream(tiny_tokens), spec, metadata)
    assert work.read(packed.blob).read_bytes() == pack(here.model, metadata, spec.zstd_level)
    assert (packed.divergence_nats, packed.step_multiplier) == (here.divergence_nats, here.multiplier)
    assert 0 < here.divergence_nats < (0.01 if spec is CODED else 1)
    assert {row.format for row in packed.tensors} == (
        {"coded", "fp32"} if spec is CODED else {"fp16", "int8", "int4", "fp32"}
    )


def train_stream(tokens: TokenizedCorpus) -> TokenStream:
    return TokenStream([Path(shard.path) for shard in tokens.train_shards])


def test_a_limit_without_the_scripts_bytes_is_the_users_error_without_the_pipeline(
    tiny_merged: MergedModel, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    spec = dataclasses.replace(CODED, fit=FitSettings(limit_bytes=100_000))
    with pytest.raises(SpecError, match=r"quantize\.fit\.code_bytes: without the pipeline, give the bytes"):
        quantize(spec, tiny_merged, tiny_tokens, make_workspace("a"))


def test_too_little_training_text_is_the_users_error(
    tiny_merged: MergedModel, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    spec = dataclasses.replace(CODED, calibration=dataclasses.replace(CALIBRATION, num_sequences=10_000))
    with pytest.raises(
        SpecError,
        match=r"quantize\.calibration\.num_sequences = 10000: "
        r"the training split has 624 sequences of 32 tokens",
    ):
        quantize(spec, tiny_merged, tiny_tokens, make_workspace("a"))


def test_entropy_is_that_of_the_symbols() -> None:
    assert entropy_bits(torch.tensor([[3, 3, -4, 5]], dtype=torch.int8)) == pytest.approx(1.5)
    assert entropy_bits(torch.zeros(5, dtype=torch.int8)) == 0
    # high bytes differ, low bytes are all zero
    assert entropy_bits(torch.tensor([1.0, 2.0], dtype=torch.float16)) == pytest.approx(1.0)
