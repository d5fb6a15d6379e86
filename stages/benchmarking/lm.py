"""A model of ours as lm-evaluation-harness asks for one."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from schemas.sample import SamplingSettings
from stages.benchmarking.likelihood import Progress, TokenScorer
from stages.core.shards import BOS_ID
from stages.sampling.generator import Generator

TOKENS_AT_ONCE = 16
"""Written between two looks for the text that ends a generation."""
MAX_NEW_TOKENS = 256
"""Where a task does not say; the harness's own models have the same."""


class FairwayLM(TemplateLM):
    """Answers the three kinds of request: likelihood of a continuation, of a document, and text.

    `generator` writes text, on the CPU in float32; its tokenizer encodes everything.
    """

    def __init__(self, scorer: TokenScorer, generator: Generator, progress: Progress) -> None:
        super().__init__()
        self._scorer, self._generator, self._progress = scorer, generator, progress

    @property
    def eot_token_id(self) -> int:
        """The token that begins the next document ends this one."""
        return BOS_ID

    @property
    def tokenizer_name(self) -> str:
        return "sentencepiece"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids without BOS, which the scorer sets before each text."""
        ids: list[int] = self._generator.tokenizer.encode(string)
        return ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        # An empty context comes as BOS alone.
        pairs = [(context[context[:1] == [BOS_ID] :], continuation) for _, context, continuation in requests]
        return self._scorer.continuations(pairs, self._progress)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._scorer.documents([self.tok_encode(item.args[0]) for item in requests], self._progress)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        written = []
        for item in requests:
            context, given = item.args
            asked = normalize_gen_kwargs(given, MAX_NEW_TOKENS)
            written.append(self._write(context, asked["until"], asked["max_gen_toks"], _sampling(asked)))
            self._progress(len(written), len(requests), "texts")
        return written

    def _write(self, context: str, until: Sequence[str], most: int, how: dict[str, Any]) -> str:
        """The text after `context`, up to the first of `until`, the end of the document, or `most` tokens."""
        start, ids = self.tok_encode(context), list[int]()
        while len(ids) < most:
            count = min(TOKENS_AT_ONCE, most - len(ids))
            # The seed moves on with the text: a part would get the random numbers of the part before it.
            settings = SamplingSettings(tokens=count, seed=1 + len(ids), **how)
            [more] = self._generator.continue_tokens([[BOS_ID, *start, *ids]], settings)
            ids += more
            text = self._generator.text_after(start, ids)
            if len(more) < count or any(end in text for end in until if end):
                break
        return postprocess_generated_text(self._generator.text_after(start, ids), list(until), None)


def _sampling(asked: Any) -> dict[str, Any]:
    if not asked["do_sample"]:
        return {"temperature": 0.0}
    return {"temperature": asked.get("temperature", 1.0), "top_k": asked.get("top_k", 0)}
