"""Log-likelihoods of token ids under a model, in nats.

Shape legend: B rows, T inputs of the longest row, S scored positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.model import GPT
from stages.core.scoring import plan_windows
from stages.core.shards import BOS_ID

Ids = Sequence[int]
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Row:
    """The last `num_scored` of `ids` are scored, each predicted from all ids before it in the row.

    `owner`: the request that they belong to.
    """

    owner: int
    ids: Ids
    num_scored: int


class TokenScorer:
    """Scores texts as ids without BOS, which begins each of them.

    `sequence_length`: inputs of a row at most. `batch_tokens`: inputs of a batch at most, but at least one
    row. `dtype`: of the matrix products.
    """

    def __init__(self, model: GPT, sequence_length: int, batch_tokens: int, dtype: torch.dtype) -> None:
        self.model = model.eval()
        self.sequence_length, self.batch_tokens, self.dtype = sequence_length, batch_tokens, dtype

    def continuations(self, pairs: Sequence[tuple[Ids, Ids]], progress: Progress) -> list[tuple[float, bool]]:
        """For each context and continuation the log-likelihood of the continuation, and whether each of its
        ids is the likeliest one.

        Of a context that is too long the end counts.
        """
        rows = [
            row
            for owner, (context, continuation) in enumerate(pairs)
            for row in _continuation_rows(owner, context, continuation, self.sequence_length)
        ]
        return self._score(rows, len(pairs), progress)

    def documents(self, documents: Sequence[Ids], progress: Progress) -> list[float]:
        """The log-likelihood of each document, by the non-overlapping windows of `evaluate`.

        They begin at the document's BOS, and the BOS after it is not scored. The harness's own models give
        the last window of a document more context.
        """
        rows = [
            row
            for owner, document in enumerate(documents)
            for row in _document_rows(owner, document, self.sequence_length)
        ]
        return [likelihood for likelihood, _ in self._score(rows, len(documents), progress)]

    def _score(self, rows: Sequence[Row], owners: int, progress: Progress) -> list[tuple[float, bool]]:
        sums, greedy = [0.0] * owners, [True] * owners
        done = 0
        for batch in _batches(rows, self.batch_tokens):
            for row, (likelihood, likeliest) in zip(batch, self._score_batch(batch), strict=True):
                sums[row.owner] += likelihood
                greedy[row.owner] &= likeliest
            done += len(batch)
            progress(done, len(rows), "rows")
        return list(zip(sums, greedy, strict=True))

    @torch.inference_mode()
    def _score_batch(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        device = self.model.tok_emb.weight.device
        longest = max(len(row.ids) for row in rows)
        # Zeros follow a shorter row. No attention looks at what comes later, so they change no figure.
        ids = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows], device=device)
        first = min(len(row.ids) - 1 - row.num_scored for row in rows)
        num_last = longest - 1 - first
        # As in stages.core.scoring: a GPU's attention takes as many queries as keys.
        last = num_last if device.type == "cpu" else None
        hidden = self.model.hidden(ids[:, :-1], self.dtype, last)[:, -num_last:]
        logits: Tensor = self.model.logits(hidden)  # (B, S, V)
        targets = ids[:, -num_last:]
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        nll, likeliest = nll.double().cpu(), (logits.argmax(dim=-1) == targets).cpu()
        scored = [slice(len(row.ids) - 1 - row.num_scored - first, len(row.ids) - 1 - first) for row in rows]
        return [(-float(nll[i, s].sum()), bool(likeliest[i, s].all())) for i, s in enumerate(scored)]


def _continuation_rows(owner: int, context: Ids, continuation: Ids, length: int) -> Iterator[Row]:
    """One row; for a continuation longer than `length` several, each with as much before it as fits."""
    ids = [BOS_ID, *context, *continuation]
    for start in range(1 + len(context), len(ids), length):
        stop = min(start + length, len(ids))
        yield Row(owner, ids[max(0, stop - 1 - length) : stop], stop - start)


def _document_rows(owner: int, document: Ids, length: int) -> Iterator[Row]:
    if document:
        ids = [BOS_ID, *document]
        for window in plan_windows(len(document), length, length):
            yield Row(owner, ids[window.start : window.stop + 1], window.stop - window.first_target)


def _batches(rows: Sequence[Row], num_tokens: int) -> Iterator[list[Row]]:
    """Rows of like length together, the longest first, so that memory runs out at once if it does."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (len(row.ids), row.num_scored), reverse=True):
        if batch and (len(batch) + 1) * (len(batch[0].ids) - 1) > num_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
