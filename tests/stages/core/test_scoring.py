import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.model_settings import ModelSettings
from schemas.scoring_settings import ScoringSettings, Windows
from stages.core.bits_per_byte import TokenBytes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.scoring import plan_document_windows, plan_windows, score, score_as_dict, score_line
from stages.core.shards import BOS_ID, ShardWriter

MODEL = ModelSettings(
    vocab_size=32,
    num_layers=2,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=16,
    rope_dims=4,
    xsa_layers=1,
    value_embedding_dim=0,
)
TABLE = TokenBytes(
    base_bytes=np.array([0, 0, 0, 3] + [1 + i % 4 for i in range(28)]),
    leading_space=np.array([False] * 4 + [i % 3 == 0 for i in range(28)]),
    boundary=np.array([True, True, True] + [False] * 29),
)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(MODEL)
    model.init_weights(0)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.2 * torch.randn_like(param))
    return model


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    ids = np.random.default_rng(1).integers(3, 32, 157).astype(np.uint16)
    ids[[0, 40, 41, 100]] = BOS_ID
    return ids


@pytest.fixture
def stream(ids: np.ndarray, tmp_path: Path) -> TokenStream:
    with ShardWriter(tmp_path, "val", shard_tokens=100) as writer:
        writer.write(ids)
    return TokenStream(writer.paths)


@pytest.mark.parametrize(("windows", "starts"), [("stream", [0]), ("documents", [0, 40, 41, 100])])
@pytest.mark.parametrize(("reach", "batch_tokens"), [(24, 1), (24, 60), (5, 32), (400, 1)])
@torch.inference_mode()
def test_an_attention_window_is_sliding_one_token_at_a_time(
    ids: np.ndarray, stream: TokenStream, windows: Windows, starts: list[int], reach: int, batch_tokens: int
) -> None:
    """Exactly so in a model of one layer: in a deeper one, a token knows what earlier ones attended to."""
    shallow = GPT(replace(MODEL, num_layers=1, smear_gate=False))
    shallow.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    for param in shallow.parameters():
        param.add_(0.2 * torch.randn(param.shape, generator=generator))
    settings = ScoringSettings(8, 0, batch_tokens, windows, reach)
    assert settings.overlapping is not None
    sums = score(shallow, stream, TABLE, settings, settings.overlapping[1], torch.float32, reach=reach)
    expected = [
        nll
        for start, end in zip(starts, [*starts[1:], len(ids) - 1], strict=True)
        for nll in slow_nll(shallow, ids[start : end + 1], reach, 1)
    ]
    assert sums.num_targets == 156
    assert sums.nll_nats_sum == pytest.approx(sum(expected), rel=1e-5)


@torch.inference_mode()
def test_an_attention_window_over_the_whole_text_is_one_window(model: GPT, stream: TokenStream) -> None:
    whole = score(model, stream, TABLE, ScoringSettings(400, 0), 400, torch.float32)
    wide = score(model, stream, TABLE, ScoringSettings(8, 0), 300, torch.float32, reach=300)
    narrow = score(model, stream, TABLE, ScoringSettings(8, 0), 5, torch.float32, reach=5)
    assert wide.nll_nats_sum == pytest.approx(whole.nll_nats_sum, rel=1e-6)
    assert narrow.nll_nats_sum != pytest.approx(whole.nll_nats_sum, rel=1e-4)
    assert narrow.num_targets == whole.num_targets


@settings(deadline=None)
@given(num_targets=st.integers(1, 400), length=st.integers(1, 60), data=st.data())
def test_windows_score_every_target_once_and_none_is_empty(
    num_targets: int, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length))
    windows = plan_windows(num_targets, length, stride)
    scored = [target for window in windows for target in range(window.first_target, window.stop)]
    assert scored == list(range(num_targets))
    assert all(
        window.start <= window.first_target < window.stop <= window.start + length for window in windows
    )
    assert all(window.start + length - stride < num_targets for window in windows[1:])


def slow_nll(model: GPT, ids: np.ndarray, length: int, stride: int) -> list[float]:
    """The definition, one target at a time: the context starts at the smallest multiple of stride that
    leaves room.
    """
    result = []
    for target in range(len(ids) - 1):
        start = 0 if target < length else math.ceil((target + 1 - length) / stride) * stride
        inputs = torch.from_numpy(ids[start : target + 1].astype(np.int64))[None]
        logits = model.logits(model.hidden(inputs))[0, -1]
        result.append(float(F.cross_entropy(logits.double(), torch.tensor(int(ids[target + 1])))))
    return result


@pytest.mark.parametrize(("length", "stride"), [(24, 24), (24, 8), (24, 5), (400, 64)])
@torch.inference_mode()
def test_score_is_the_slow_definition(
    model: GPT, ids: np.ndarray, stream: TokenStream, length: int, stride: int
) -> None:
    sums = score(
        model,
        stream,
        TABLE,
        ScoringSettings(length, min(stride, length), batch_tokens=100),
        stride,
        torch.float32,
    )
    expected = slow_nll(model, ids, length, stride)
    bytes_expected = 0
    for previous, target in zip(ids[:-1], ids[1:], strict=True):
        space = TABLE.leading_space[target] and not TABLE.boundary[previous]
        bytes_expected += int(TABLE.base_bytes[target]) + int(space)
    assert sums.num_targets == len(expected) == 156
    assert sums.nll_nats_sum == pytest.approx(sum(expected), rel=1e-5)
    assert sums.num_bytes == bytes_expected
    assert sums.bpb == pytest.approx(sum(expected) / math.log(2) / bytes_expected, rel=1e-5)
    assert sums.num_bos_targets == 3
    assert sums.bos_nats_sum == pytest.approx(sum(expected[i] for i in (39, 40, 99)), rel=1e-5)


@pytest.mark.parametrize(
    ("length", "stride", "batch_tokens"),
    [(24, 24, 100), (24, 8, 100), (24, 5, 60), (400, 64, 1000), (24, 8, 1)],
)
@torch.inference_mode()
def test_windows_inside_documents_see_no_other_document(
    model: GPT, ids: np.ndarray, stream: TokenStream, length: int, stride: int, batch_tokens: int
) -> None:
    """The definition: each document by itself, with the BOS that ends it."""
    starts = [0, 40, 41, 100]
    expected = [
        nll
        for start, end in zip(starts, [*starts[1:], len(ids) - 1], strict=True)
        for nll in slow_nll(model, ids[start : end + 1], length, stride)
    ]
    settings = ScoringSettings(length, min(stride, length), batch_tokens, windows="documents")
    sums = score(model, stream, TABLE, settings, stride, torch.float32)
    over_stream = score(model, stream, TABLE, replace(settings, windows="stream"), stride, torch.float32)
    assert sums.nll_nats_sum == pytest.approx(sum(expected), rel=1e-5)
    assert sums.nll_nats_sum != pytest.approx(over_stream.nll_nats_sum, rel=1e-5)
    assert sums.bos_nats_sum == pytest.approx(sum(expected[i] for i in (39, 40, 99)), rel=1e-5)
    assert (sums.num_targets, sums.num_bytes, sums.num_bos_targets) == (
        over_stream.num_targets,
        over_stream.num_bytes,
        over_stream.num_bos_targets,
    )
    assert (sums.windows, over_stream.windows) == ("documents", "stream")
    line = score_line("sliding", score_as_dict(sums, 1.0))
    assert line.endswith(f"bytes {sums.num_bytes}, windows inside documents, in 1.0 s")
    line = score_line("sliding", score_as_dict(over_stream, 1.0), 32)
    assert line.endswith(f"bytes {sums.num_bytes}, attention over 32 tokens, in 1.0 s")


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=12), length=st.integers(1, 30), data=st.data()
)
def test_windows_inside_documents_score_every_target_once(
    counts: list[int], length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length))
    ends = np.cumsum(counts)
    windows = plan_document_windows(ends - counts, int(ends[-1]), length, stride)
    scored = [target for window in windows for target in range(window.first_target, window.stop)]
    assert sorted(scored) == list(range(ends[-1]))
    owner = np.repeat(np.arange(len(counts)), counts)
    assert all(owner[window.start] == owner[window.stop - 1] for window in windows)
