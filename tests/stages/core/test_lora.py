"""Test-time training: a slow reference in float64, and that no score knows what comes after it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.lora_settings import LoraSettings
from schemas.model_settings import ModelSettings
from schemas.scoring_settings import ScoringSettings
from stages.core.attention import attend_causally, exclude_own_value, rotary_angles, rotate_partly
from stages.core.bits_per_byte import TokenBytes
from stages.core.loader import TokenStream
from stages.core.lora import ROUNDED_TO, AdaptedSums, DocumentLoras, chunk_ends, score_learning
from stages.core.model import GPT, rms_norm
from stages.core.scoring import score
from stages.core.shards import BOS_ID, ShardWriter

VOCABULARY, WINDOW, CHUNK = 32, 12, 5
MODEL = ModelSettings(
    vocab_size=VOCABULARY,
    num_layers=3,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=24,
    rope_dims=4,
    xsa_layers=3,
    value_embedding_dim=0,
    smear_gate=False,
    leaky_slope=0.5,
    loop_passes=2,
    loop_layers=(1,),
    skip_gates=True,
    parallel_residuals="one_lane",
    parallel_first_layer=2,
    head_gate=True,
    head_gate_dims=4,
)
LORA = LoraSettings(
    on=True,
    rank=3,
    alpha=6.0,
    targets=("q", "k", "v", "o", "mlp", "head"),
    chunk_tokens=CHUNK,
    lr=0.02,
    eps=1e-3,
    max_seconds=1e6,
)
SCORING = ScoringSettings(WINDOW, WINDOW, batch_tokens=1_000)
TABLE = TokenBytes(np.ones(VOCABULARY, np.int64), np.zeros(VOCABULARY, bool), np.zeros(VOCABULARY, bool))
STARTS, NUM_TOKENS = (0, 31, 33, 50, 60), 79
BY_LENGTH = (0, 60, 33, 50, 31)
Nats = list[Tensor]
MakeStream = Callable[[np.ndarray], TokenStream]


def make_model(settings: ModelSettings = MODEL) -> GPT:
    torch.manual_seed(0)
    model = GPT(settings).double()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(0.3 * torch.randn_like(param) + (param.dim() < 2))
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model()


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    found = np.random.default_rng(1).integers(3, VOCABULARY, NUM_TOKENS)
    found[list(STARTS)] = BOS_ID
    return found


@pytest.fixture
def stream_of(tmp_path: Path) -> MakeStream:
    def make(ids: np.ndarray) -> TokenStream:
        with ShardWriter(tmp_path, f"val{len(list(tmp_path.iterdir()))}", 1_000) as writer:
            writer.write(ids.astype(np.uint16))
        return TokenStream(writer.paths)

    return make


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Nats:
    """The nats (B, T) of each batch that `score_learning` adds up, 0 where nothing is scored."""
    found: Nats = []

    def keep(table: TokenBytes, ids: np.ndarray, scored: np.ndarray, nll: Tensor) -> Tensor:
        found.append(nll.masked_fill(torch.from_numpy(~scored), 0.0))
        return torch.tensor([float(found[-1].sum()), scored.sum(), scored.sum(), 0, 0], dtype=torch.float64)

    monkeypatch.setattr("stages.core.lora.target_sums", keep)
    return found


def run(model: GPT, tokens: TokenStream, settings: LoraSettings = LORA, **scoring: int) -> AdaptedSums:
    return score_learning(model, tokens, TABLE, replace(SCORING, **scoring), settings, torch.float64)


class PlainLora:
    """The whole thing for one document, as it would be written down: A and B of each pass and target, and
    AdamW by its formula.
    """

    def __init__(self, model: GPT, settings: LoraSettings) -> None:
        self.model, self.settings, self.step = model, settings, 0
        batched = DocumentLoras(model, settings, 1)._pairs  # for the same beginning
        self.pairs = {key: [part.detach()[0].clone() for part in pair] for key, pair in batched.items()}
        self.means = {key: [torch.zeros_like(part) for part in pair] for key, pair in self.pairs.items()}
        self.squares = {key: [torch.zeros_like(part) for part in pair] for key, pair in self.pairs.items()}

    def added(self, number: int, target: str, x: Tensor) -> Tensor:
        into, out = self.pairs[number, target]
        return (self.settings.alpha / self.settings.rank) * x @ into @ out

    def logits(self, ids: Tensor) -> Tensor:
        """ids (T,) -> (T, V): the forward pass once more, for this shape of model only."""
        model, shape = self.model, self.model.settings
        rotation = rotary_angles(len(ids), shape.rope_dims, shape.rope_base, ids.device)
        x = x0 = rms_norm(model.tok_emb.weight[ids])
        order, skips = (0, 1, 1, 2), []
        for number, layer in enumerate(order):
            block = model.blocks[layer]
            if number >= 2:
                weighted = model.skip_weights[number - 2] * skips.pop()  # type: ignore[index]
                gate = torch.sigmoid(model.skip_gates[number - 2])  # type: ignore[index]
                x = weighted + gate * (x - weighted)
            x = block.resid_mix[0] * x + block.resid_mix[1] * x0
            normed = rms_norm(x, (layer + 1) ** -0.5)
            x = x + self.attention(number, block, normed, rotation)
            read = normed if layer == 2 else rms_norm(x, (layer + 1) ** -0.5)
            hidden = F.leaky_relu(read @ block.mlp.up.weight.T, 0.5) ** 2
            x = x + block.mlp_scale * (hidden @ block.mlp.down.weight.T + self.added(number, "mlp", read))
            if number < 2:
                skips.append(x)
        x = rms_norm(x)
        raw = x @ model.tok_emb.weight.T + self.added(len(order), "head", x)
        return shape.logit_softcap * torch.tanh(raw.float() / shape.logit_softcap)

    def attention(self, number: int, block: torch.nn.Module, x: Tensor, rotation: tuple) -> Tensor:
        attn = block.attn
        q, k, v = (
            (x @ getattr(attn, name).weight.T + self.added(number, name, x)).view(
                1, len(x), -1, attn.head_dim
            )
            for name in ("q", "k", "v")
        )
        q = rotate_partly(rms_norm(q), *rotation) * attn.q_gain[:, None]
        y = exclude_own_value(attend_causally(q, rotate_partly(rms_norm(k), *rotation), v), v)
        y = y[0] * torch.sigmoid(0.5 * x[:, :4] @ attn.head_gate.T)[:, :, None]
        return block.attn_scale * (y.flatten(1) @ attn.out.weight.T + self.added(number, "o", x))

    def nats(self, document: np.ndarray) -> Tensor:
        """ids (T+1,) -> nats of the targets (T,), learning as it goes."""
        ids, found, begin = torch.from_numpy(document), [], 0
        length = len(document) - 1
        for end in [2, *range(2 + CHUNK, length, CHUNK), length] if length > 2 else [length]:
            start = max(0, begin + CHUNK - WINDOW) if begin else 0
            parts = [part.requires_grad_() for pair in self.pairs.values() for part in pair]
            logits = self.logits(ids[start:end])[begin - start :]
            nats = F.cross_entropy(logits, ids[begin + 1 : end + 1], reduction="none")
            found.append(nats.detach())
            if end < length:
                self.learn(torch.autograd.grad(nats.mean(), parts))
            begin = end
        return torch.cat(found).double()

    def learn(self, gradients: tuple[Tensor, ...]) -> None:
        settings, gradient = self.settings, iter(gradients)
        self.step += 1
        for key, pair in self.pairs.items():
            for which, part in enumerate(pair):
                slope, mean, square = next(gradient), self.means[key][which], self.squares[key][which]
                mean.copy_(settings.beta1 * mean + (1 - settings.beta1) * slope)
                square.copy_(settings.beta2 * square + (1 - settings.beta2) * slope**2)
                moved = mean / (1 - settings.beta1**self.step)
                spread = (square / (1 - settings.beta2**self.step)).sqrt() + settings.eps
                kept = part.detach() * (1 - settings.lr * settings.weight_decay)
                pair[which] = kept - settings.lr * moved / spread


def documents(ids: np.ndarray) -> list[np.ndarray]:
    """Each with the BOS that ends it, the longest first."""
    ends = [*STARTS[1:], len(ids) - 1]
    return sorted((ids[begin : end + 1] for begin, end in zip(STARTS, ends, strict=True)), key=len)[::-1]


@pytest.mark.parametrize(
    ("batch_documents", "beta1", "rounded_to"),
    [(64, 0.0, 1), (2, 0.9, 1), (64, 0.0, 8)],
    ids=["all at once", "two by two, with a mean", "windows rounded up, as on a GPU"],
)
def test_each_document_is_scored_as_by_a_slow_reference(
    model: GPT,
    ids: np.ndarray,
    stream_of: MakeStream,
    told: Nats,
    monkeypatch: pytest.MonkeyPatch,
    batch_documents: int,
    beta1: float,
    rounded_to: int,
) -> None:
    monkeypatch.setitem(ROUNDED_TO, "cpu", rounded_to)
    settings = LORA.derive(batch_documents=batch_documents, beta1=beta1)
    sums = run(model, stream_of(ids), settings)
    expected = [PlainLora(model, settings).nats(document) for document in documents(ids)]
    rows = [row for batch in told for row in batch]
    for row, nats in zip(rows, expected, strict=True):
        torch.testing.assert_close(row[: len(nats)], nats, rtol=2e-5, atol=1e-6)
        assert not row[len(nats) :].any()
    assert sums.adapted is not None
    assert sums.adapted.num_targets == NUM_TOKENS - 1
    assert sums.num_documents == len(STARTS)
    assert sums.num_steps == sum(len(chunk_ends(len(nats), WINDOW, CHUNK)) - 1 for nats in expected)


def test_it_has_learned_something(model: GPT, ids: np.ndarray, stream_of: MakeStream) -> None:
    """A document that repeats itself is easier to predict after a few steps."""
    again = np.concatenate(([BOS_ID], np.tile(ids[1:4], 40)))
    sums = run(model, stream_of(again))
    assert sums.adapted is not None
    assert sums.adapted.loss < 0.5 * sums.without.loss


def test_a_later_token_moves_no_earlier_score(
    model: GPT, ids: np.ndarray, stream_of: MakeStream, told: Nats
) -> None:
    run(model, stream_of(ids))
    for position in (17, 29, 57, 78):  # in the middle of a chunk, near the end, in another document, the last
        changed = ids.copy()
        changed[position] = 3 + (changed[position] - 2) % (VOCABULARY - 3)
        assert changed[position] != ids[position]
        run(model, stream_of(changed))
        document = max(start for start in STARTS if start <= position)
        row = BY_LENGTH.index(document)
        before, after = told[0], told[-1]
        target = position - document - 1
        assert torch.equal(before[row, :target], after[row, :target])
        assert not torch.equal(before[row], after[row])
        others = [other for other in range(len(STARTS)) if other != row]
        assert torch.equal(before[others], after[others])


def test_without_a_step_it_scores_sliding_windows_inside_documents(
    model: GPT, ids: np.ndarray, stream_of: MakeStream
) -> None:
    """Not learning, each window is exactly what the model says to it."""
    still = LORA.derive(lr=0.0)
    tokens = stream_of(ids)
    sums = run(model, tokens, still)
    inside = replace(SCORING, windows="documents")
    plain = score(model, tokens, TABLE, inside, CHUNK, torch.float64)
    assert sums.adapted is not None
    assert sums.without == plain
    assert sums.adapted.nll_nats_sum == pytest.approx(plain.nll_nats_sum, rel=1e-7)
    assert replace(sums.adapted, nll_nats_sum=plain.nll_nats_sum, bos_nats_sum=plain.bos_nats_sum) == plain


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"smear_gate": True, "value_embedding_dim": 8, "value_embedding_layers": (2,)},
        {"tied_head": False},
    ],
    ids=["loops", "smear and value embedding", "untied head"],
)
def test_without_a_step_each_score_is_exactly_the_model_s(
    changes: dict, ids: np.ndarray, stream_of: MakeStream, told: Nats
) -> None:
    model = make_model(replace(MODEL, **changes))
    run(model, stream_of(ids[: STARTS[1] + 1]), LORA.derive(lr=0.0))
    document, begin = torch.from_numpy(ids[: STARTS[1] + 1])[None], 0
    for end in chunk_ends(STARTS[1], WINDOW, CHUNK):
        start = max(0, begin + CHUNK - WINDOW) if begin else 0
        with torch.no_grad():
            hidden = model.hidden(document[:, start:end], torch.float64, end - begin)
            nats = F.cross_entropy(
                model.logits(hidden)[0], document[0, begin + 1 : end + 1], reduction="none"
            )
        assert torch.equal(told[0][0, begin:end], nats.double())
        begin = end


def test_a_document_scores_alone_as_beside_any_other(
    model: GPT, ids: np.ndarray, stream_of: MakeStream, told: Nats
) -> None:
    run(model, stream_of(ids))
    together = told[0]
    for row, document in enumerate(documents(ids)):
        run(model, stream_of(document))
        alone = told[-1][0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-6, atol=1e-7)


def test_two_lanes_have_loras_too(ids: np.ndarray, stream_of: MakeStream) -> None:
    lanes = replace(MODEL, parallel_residuals="two_lanes")
    for target in ("k", "o", "mlp"):
        sums = run(make_model(lanes), stream_of(ids), LORA.derive(targets=(target,)))
        assert sums.adapted is not None
        assert sums.adapted.nll_nats_sum != pytest.approx(sums.without.nll_nats_sum, rel=1e-6)


def test_the_model_is_afterwards_what_it_was(model: GPT, ids: np.ndarray, stream_of: MakeStream) -> None:
    tokens = stream_of(ids)
    before = {name: param.clone() for name, param in model.named_parameters()}
    first, second = run(model, tokens), run(model, tokens)
    assert replace(first, seconds=0, without_seconds=0) == replace(second, seconds=0, without_seconds=0)
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_over_its_clock_there_is_no_score(model: GPT, ids: np.ndarray, stream_of: MakeStream) -> None:
    sums = run(model, stream_of(ids), LORA.derive(max_seconds=1e-9))
    assert sums.adapted is None
    assert sums.done_share < 1
    assert sums.without.num_targets == NUM_TOKENS - 1


def test_a_chunk_beyond_the_window_is_refused(model: GPT, ids: np.ndarray, stream_of: MakeStream) -> None:
    with pytest.raises(ValueError, match=r"chunk_tokens = 13: must be at most sequence_length = 12"):
        run(model, stream_of(ids), LORA.derive(chunk_tokens=13))


@pytest.mark.parametrize(("window", "chunk"), [(12, 5), (12, 12), (12, 1), (10, 5), (2048, 48)])
def test_chunks_are_what_sliding_windows_score(window: int, chunk: int) -> None:
    for length in (1, window - 1, window, window + 1, 3 * window + 2):
        ends = chunk_ends(length, window, chunk)
        assert ends == sorted(set(ends))
        assert ends[-1] == length
        assert max(np.diff([0, *ends])) <= chunk
        assert [end for end in ends if end >= window] == [
            *range(window, length, chunk),
            *([length] if length >= window else []),
        ]
