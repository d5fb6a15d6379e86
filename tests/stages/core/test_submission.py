"""A blob is data from strangers: one that describes another model is refused before anything of its size is made."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from schemas.settings import ModelSettings, QuantizerSettings
from stages.core.model import GPT
from stages.core.packing import BlobError, pack
from stages.core.quantizers.methods import quantize_state
from stages.core.submission import load_packed_model

MODEL = ModelSettings(
    vocab_size=300,
    num_layers=2,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_hidden=48,
    rope_dims=4,
    xsa_layers=1,
    value_embedding_dim=8,
    value_embedding_layers=(1,),
)


def blob(folder: Path, metadata: dict) -> Path:
    model = GPT(MODEL)
    model.init_weights(0)
    path = folder / "model.fwz"
    path.write_bytes(pack(quantize_state(dict(model.state_dict()), QuantizerSettings()), metadata, 3))
    return path


def test_a_packed_model_comes_back_close_to_what_it_was(tmp_path: Path) -> None:
    model = GPT(MODEL)
    model.init_weights(0)
    loaded = load_packed_model(blob(tmp_path, {"model": asdict(MODEL)}), torch.device("cpu"))
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
        ({"model": asdict(replace(MODEL, mlp_hidden=1 << 40))}, "the settings ask for shape"),
        ({"model": asdict(replace(MODEL, num_layers=3))}, "the blob has None"),
    ],
)
def test_a_blob_whose_settings_do_not_fit_is_refused(tmp_path: Path, metadata: dict, message: str) -> None:
    with pytest.raises(BlobError, match=message):
        load_packed_model(blob(tmp_path, metadata), torch.device("cpu"))
