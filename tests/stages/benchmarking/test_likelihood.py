"""Log-likelihoods for lm-evaluation-harness against plain computations, one request at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.model_settings import ModelSettings
from schemas.scoring_settings import ScoringSettings
from stages.benchmarking.likelihood import TokenScorer
from stages.core.bits_per_byte import TokenBytes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.scoring import score
from stages.core.shards import BOS_ID, ShardWriter
from stages.store.workspace import no_progress

LENGTH = 16


@pytest.fixture
def model(tiny_model: ModelSettings, tiny_state: dict[str, Tensor]) -> GPT:
    model = GPT(tiny_model)
    model.load_state_dict(tiny_state)
    return model.eval()


def scorer(model: GPT, batch_tokens: int = 64) -> TokenScorer:
    return TokenScorer(model, LENGTH, batch_tokens, torch.float32)


def some_ids(count: int, seed: int = 0) -> list[int]:
    return [int(item) for item in np.random.default_rng(seed).integers(4, 290, count)]


def plain(model: GPT, ids: list[int], num_scored: int) -> tuple[float, bool]:
    """Of the last ids of one row, alone in its batch."""
    with torch.inference_mode():
        logits = model.logits(model.hidden(torch.tensor([ids[:-1]])))[0, -num_scored:]
    targets = torch.tensor(ids[-num_scored:])
    chosen = logits.log_softmax(dim=-1).gather(1, targets[:, None])
    return float(chosen.double().sum()), bool((logits.argmax(dim=-1) == targets).all())


@pytest.mark.parametrize("count", [1, LENGTH - 1, LENGTH, LENGTH + 1, 3 * LENGTH + 5])
def test_a_document_scores_as_in_evaluation(model: GPT, tmp_path: Path, count: int) -> None:
    document = some_ids(count)
    with ShardWriter(tmp_path, "val") as writer:
        writer.write(np.array([BOS_ID, *document]))
    table = TokenBytes(np.ones(320, np.int64), np.zeros(320, np.bool_), np.zeros(320, np.bool_))
    windows = ScoringSettings(sequence_length=LENGTH, stride=0, batch_tokens=64)
    sums = score(model, TokenStream(writer.paths), table, windows, LENGTH, torch.float32)
    [found] = scorer(model).documents([document], no_progress)
    assert sums.num_targets == count
    assert found == pytest.approx(-sums.nll_nats_sum, rel=1e-6)


def test_documents_do_not_see_one_another_and_come_back_in_their_order(model: GPT) -> None:
    documents = [some_ids(count, seed) for seed, count in enumerate((40, 3, 0, 17, 16))]
    alone = [scorer(model).documents([document], no_progress)[0] for document in documents]
    assert scorer(model, 10_000).documents(documents, no_progress) == pytest.approx(alone, rel=1e-6)
    assert alone[2] == 0.0


def test_a_continuation_is_predicted_from_its_context(model: GPT) -> None:
    pairs = [(some_ids(5), some_ids(4, 1)), ([], some_ids(3, 2)), (some_ids(11), some_ids(1, 3))]
    plainly = [plain(model, [BOS_ID, *context, *ids], len(ids)) for context, ids in pairs]
    found = scorer(model).continuations(pairs, no_progress)
    assert [item[0] for item in found] == pytest.approx([item[0] for item in plainly], rel=1e-5)
    assert [item[1] for item in found] == [item[1] for item in plainly]


def test_the_likeliest_continuation_is_told(model: GPT) -> None:
    context, ids = some_ids(6), list[int]()
    for _ in range(3):
        with torch.inference_mode():
            hidden = model.hidden(torch.tensor([[BOS_ID, *context, *ids]]), num_last=1)
            ids.append(int(model.logits(hidden).argmax()))
    other = [*ids[:2], (ids[2] + 1) % 290]
    found = scorer(model).continuations([(context, ids), (context, other), (context, [])], no_progress)
    assert [likeliest for _, likeliest in found] == [True, False, True]
    assert found[0][0] > found[1][0]
    assert found[2][0] == 0.0


def test_of_a_long_context_the_end_counts(model: GPT) -> None:
    context, ids = some_ids(3 * LENGTH), some_ids(4, 1)
    [(found, _)] = scorer(model).continuations([(context, ids)], no_progress)
    assert found == pytest.approx(plain(model, [*context, *ids][-LENGTH - 1 :], 4)[0], rel=1e-5)


def test_a_continuation_longer_than_the_window_is_scored_whole(model: GPT) -> None:
    ids = some_ids(LENGTH + 6, 1)
    [(found, _)] = scorer(model).continuations([(some_ids(2), ids)], no_progress)
    whole = [BOS_ID, *some_ids(2), *ids]
    first = plain(model, whole[2 : 3 + LENGTH], LENGTH)[0]
    rest = plain(model, whole[-LENGTH - 1 :], 6)[0]
    assert found == pytest.approx(first + rest, rel=1e-5)


def test_progress_ends_at_all_rows(model: GPT) -> None:
    seen = list[tuple[float, float, str]]()
    scorer(model).documents([some_ids(40), some_ids(5)], lambda *told: seen.append(told))
    assert seen[-1] == (4, 4, "rows")
