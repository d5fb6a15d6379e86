"""A model and its tokenizer, which continue a text.

Shape legend: B texts, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from schemas.errors import SpecError
from schemas.sample import Continuation, SamplingSettings
from stages.core.model import GPT
from stages.core.shards import BOS_ID
from stages.processes.threads import threads_of

SMALL_PARAMETERS = 5_000_000
"""A smaller model computes a token in less time than threads take to meet on a busy machine."""


class Generator:
    """Continues texts with a model, in float32.

    `context_tokens`: the model sees at most so many tokens, the last ones; usually the length it was trained
    on. `name` is what errors and records call the model. Raises SpecError for a tokenizer with more pieces
    than the model's vocabulary.
    """

    def __init__(
        self, model: GPT, tokenizer: SentencePieceProcessor, context_tokens: int, name: str = "the model"
    ) -> None:
        known = model.settings.vocab_size
        if tokenizer.vocab_size() > known:
            raise SpecError(
                f"tokenizer: has {tokenizer.vocab_size():,} pieces, {name} knows {known:,}. Give the "
                "tokenizer that it was trained with"
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.context_tokens, self.name = context_tokens, name

    def generate(
        self,
        prompt: str = "",
        *,
        tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 50,
        seed: int = 1,
        count: int = 1,
    ) -> list[Continuation]:
        """`count` continuations of `prompt`; an empty one begins a document.

        Raises pydantic.ValidationError for settings outside the bounds of SamplingSettings.
        """
        return self.continue_text(
            prompt,
            SamplingSettings(tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, count=count),
        )

    def continue_text(self, prompt: str, settings: SamplingSettings) -> list[Continuation]:
        """The same with the settings as a record."""
        start = self.tokenizer.encode(prompt)
        written = self.continue_tokens([[BOS_ID, *start]] * settings.count, settings)
        return [
            Continuation(
                seed=settings.seed + index,
                text=self.text_after(start, ids),
                num_tokens=len(ids),
                ended=len(ids) < settings.tokens,
            )
            for index, ids in enumerate(written)
        ]

    @torch.inference_mode()
    def continue_tokens(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings
    ) -> list[list[int]]:
        """The ids after each prompt, up to the token that begins the next document.

        Prompts have one length. Text i takes its random numbers from seed + i, whatever the others are.
        """
        ids = torch.tensor(prompts, dtype=torch.int64)
        random = [torch.Generator().manual_seed(settings.seed + index) for index in range(len(prompts))]
        running = torch.ones(len(prompts), dtype=torch.bool)
        prompt_tokens = ids.size(1)
        with threads_of(self._threads()):
            for _ in range(settings.tokens):
                hidden = self.model.hidden(ids[:, -self.context_tokens :], num_last=1)
                chosen = self._choose(self.model.logits(hidden)[:, -1], settings, random)
                chosen = torch.where(running, chosen, BOS_ID)
                ids = torch.cat((ids, chosen[:, None]), dim=1)
                running &= chosen != BOS_ID
                if not running.any():
                    break
        written = ids[:, prompt_tokens:].tolist()
        return [row[: row.index(BOS_ID)] if BOS_ID in row else row for row in written]

    def text_after(self, start: Sequence[int], ids: Sequence[int]) -> str:
        """What `ids` say after `start`, both without BOS. Half a character at the end becomes U+FFFD."""
        before, whole = self.tokenizer.decode(list(start)), self.tokenizer.decode([*start, *ids])
        # A start that ends within a character reads otherwise once the character is whole.
        return whole.removeprefix(before) if whole.startswith(before) else self.tokenizer.decode(list(ids))

    def _threads(self) -> int:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return 1 if parameters < SMALL_PARAMETERS else torch.get_num_threads()

    def _choose(
        self, logits: Tensor, settings: SamplingSettings, random: Sequence[torch.Generator]
    ) -> Tensor:
        """Logits (B, V) -> ids (B,).

        Drawn as the largest of logits/temperature plus Gumbel noise, which is a draw from their softmax
        (Gumbel, 1954). So two models that nearly agree write the same text from the same seed.
        """
        logits = logits[:, : self.tokenizer.vocab_size()]  # the tokenizer has no text for the rest
        if settings.temperature == 0:
            return logits.argmax(dim=-1)
        if 0 < settings.top_k < logits.size(1):
            least = logits.topk(settings.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        draws = [torch.empty(logits.size(1)).exponential_(generator=generator) for generator in random]
        return (logits / settings.temperature - torch.stack(draws).log()).argmax(dim=-1)
