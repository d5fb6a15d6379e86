"""Settings of scoring, and the kinds of windows that training shares.

Standard library only: this class ships in the submission.
"""

from dataclasses import dataclass
from typing import Literal

from schemas.settings_base import Settings, setting

Windows = Literal["stream", "documents"]
"""Whether a window of text follows the stream of tokens or the documents in it."""


@dataclass(frozen=True)
class ScoringSettings(Settings):
    """How a model is scored in bits per byte."""

    sequence_length: int = setting(2048, "context of an evaluation window", unit="tokens", minimum=2)
    stride: int = setting(
        64, "targets that each sliding window adds; 0 leaves sliding evaluation out", unit="tokens", minimum=0
    )
    batch_tokens: int = setting(65_536, "tokens in one forward pass of one process", unit="tokens", minimum=1)
    windows: Windows = setting(
        "stream",
        (
            "stream: windows cross from document to document; documents: each begins with a document or "
            "inside it, and sees no other. Figures of the two are not comparable"
        ),
    )
    attention_window: int = setting(
        0,
        (
            "instead of sliding windows, one pass over long windows in which each token attends to so many "
            "tokens up to itself, best no more than a training sequence has; needs stride 0"
        ),
        unit="tokens",
        minimum=0,
    )

    @property
    def overlapping(self) -> tuple[int, int] | None:
        """Length and stride of the windows of the second score; None where there is none.

        Of a pass with an attention window, a window repeats so many tokens of the one before, unscored: at
        least a 16th of it. In longer ones float32 would tell the angles of rotary positions apart worse.
        """
        if self.attention_window:
            reach = self.attention_window
            length = max(2 * reach, min(16 * reach, self.batch_tokens))
            return length, length - reach
        return (self.sequence_length, self.stride) if self.stride else None

    def check(self) -> None:
        if self.attention_window and self.stride:
            raise ValueError(
                f"attention_window = {self.attention_window}: it takes the place of sliding windows; set "
                f"stride=0, which is {self.stride}"
            )
        if self.stride > self.sequence_length:
            raise ValueError(
                f"stride = {self.stride}: must be at most sequence_length = {self.sequence_length}"
            )
