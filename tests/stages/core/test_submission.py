"""A blob is data from strangers: one that describes another model is refused before anything of its size is made."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from schemas.quantizer_settings import QuantizerSettings
from schemas.settings import ModelSettings
from stages.core.model import GPT
from stages.core.packing import BlobError, pack
from stages.core.quantizers.methods import quantize_state
from stages.core.submission import load_packed_model


def blob(folder: Path, model: GPT, metadata: dict) -> Path:
    path = folder / "model.fwz"
    path.write_bytes(pack(quantize_state(dict(model.state_dict()), QuantizerSettings()), metadata, 3))
    return path


@pytest.fixture
def model(tiny_model: ModelSettings) -> GPT:
    model = GPT(tiny_model)
    model.init_weights(0)
    return model


def test_a_packed_model_comes_back_close_to_what_it_was(tmp_path: Path, model: GPT) -> None:
    loaded = load_packed_model(blob(tmp_path, model, {"model": asdict(model.settings)}), torch.device("cpu"))
    for (name, a), b in zip(model.named_parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.05, msg=name)
    ids = torch.arange(3, 19)[None]
    assert torch.isfinite(loaded(ids[:, :-1], ids[:, 1:]))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not describe a model"),
        ({"model": {"num_layers": "many"}}, "does not describe a model"),
        ({"model": {"layers": 3}}, "no field 'layers'"),
        ({"mlp_hidden": 1 << 40}, "the settings ask for shape"),
        ({"num_layers": 4}, "the blob has None"),
    ],
)
def test_a_blob_whose_settings_do_not_fit_is_refused(tmp_path: Path, model: GPT, metadata: dict, message: str) -> None:
    if metadata and "model" not in metadata:
        metadata = {"model": asdict(model.settings) | metadata}
    with pytest.raises(BlobError, match=message):
        load_packed_model(blob(tmp_path, model, metadata), torch.device("cpu"))
