"""How validation documents go on by the merged and by the shipped model, for a reader."""

import numpy as np
from safetensors.torch import load_file

from schemas.sample import REPORT_SAMPLING, WrittenStart
from stages.auditing.evidence import Evidence
from stages.auditing.probe import load_model
from stages.core.loader import TokenStream
from stages.corpora.sources import ready_made_tokenizer
from stages.sampling.generator import Generator
from stages.store.workspace import Workspace

NUM_DOCUMENTS = 3
PROMPT_TOKENS = 24


def written_starts(evidence: Evidence, work: Workspace) -> tuple[WrittenStart, ...]:
    """The first validation documents that are long enough, each continued by both models with the same
    random numbers. Empty where no document is.
    """
    results = evidence.results
    tokens = TokenStream([work.read(ref) for ref in results.tokenized.val_shards])
    starts = evidence.counted.bos_positions
    lengths = np.diff(np.append(starts, len(tokens)))
    chosen = np.flatnonzero(lengths > PROMPT_TOKENS + 1)[:NUM_DOCUMENTS]
    if not len(chosen):
        return ()
    texts = [
        tokens.read(int(starts[i]), min(int(lengths[i]), 1 + PROMPT_TOKENS + REPORT_SAMPLING.tokens)).tolist()
        for i in chosen
    ]
    prompts = [text[: 1 + PROMPT_TOKENS] for text in texts]
    pieces = ready_made_tokenizer(work.read(results.tokenized.tokenizer), "tokenizer")
    context = evidence.spec.train.data.sequence_length
    merged, quantized = (
        Generator(load_model(results.merged.model, state), pieces, context)
        for state in (load_file(work.read(results.merged.weights)), evidence.shipped.state)
    )
    by_merged, by_quantized = (
        model.continue_tokens(prompts, REPORT_SAMPLING) for model in (merged, quantized)
    )
    return tuple(
        WrittenStart(
            prompt=pieces.decode(prompt[1:]),
            document=merged.text_after(prompt[1:], text[len(prompt) :]),
            merged=merged.text_after(prompt[1:], first),
            quantized=merged.text_after(prompt[1:], second),
        )
        for prompt, text, first, second in zip(prompts, texts, by_merged, by_quantized, strict=True)
    )
