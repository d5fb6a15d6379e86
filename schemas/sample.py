"""Text that a model writes: how it is chosen, and what comes out."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from schemas.base import Schema

Weights = Literal["packed", "merged"]
"""The blob that ships, dequantized; or the averaged weights before quantization."""


class SamplingSettings(Schema):
    """How the next token is chosen."""

    tokens: PositiveInt = Field(200, le=100_000, description="tokens to write at most")
    temperature: NonNegativeFloat = Field(
        0.8, le=100, description="logits are divided by it; 0 takes the likeliest token each time"
    )
    top_k: NonNegativeInt = Field(50, description="only so many of the likeliest tokens count; 0: all")
    seed: NonNegativeInt = Field(
        1, lt=2**32, description="random numbers of the first text; the next texts have the seeds after it"
    )
    count: PositiveInt = Field(1, le=64, description="texts to write")


class Continuation(Schema):
    """One text."""

    seed: NonNegativeInt
    text: str = Field(description="what comes after the prompt")
    num_tokens: NonNegativeInt
    ended: bool = Field(description="whether the model ended the document itself")


class Sample(Schema):
    """What a model wrote after one prompt."""

    source: str = Field(description="name of the run, or the folder")
    weights: Weights
    prompt: str
    settings: SamplingSettings
    context_tokens: PositiveInt = Field(description="tokens that the model sees at most, the last ones")
    continuations: tuple[Continuation, ...]
    seconds: NonNegativeFloat = Field(description="of the writing, without loading")


# Few enough tokens that even a model of 25 million parameters writes them in seconds on two cores.
REPORT_SAMPLING = SamplingSettings(tokens=48)
"""How the texts in a run's report are chosen."""


class WrittenStart(Schema):
    """The start of a validation document, and how the document and both models go on from there."""

    prompt: str
    document: str = Field(description="as the document itself goes on")
    merged: str
    quantized: str
