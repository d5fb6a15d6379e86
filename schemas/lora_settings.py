"""Settings of test-time training.

Standard library only: they ship in the program of a run that has it, and in no other.
"""

from dataclasses import dataclass
from typing import Literal

from schemas.settings_base import Settings, setting

LoraTarget = Literal["q", "k", "v", "o", "mlp", "head"]


@dataclass(frozen=True)
class LoraSettings(Settings):
    """LoRA for each document, trained while the document is scored (parameter-golf pull request 1530; the
    values of pull request 2135).
    """

    on: bool = setting(
        False, "score once more, with a LoRA for each document that learns from what is scored already"
    )
    rank: int = setting(80, "rank of each LoRA", unit="dims", minimum=1, maximum=4096)
    alpha: float = setting(144.0, "a LoRA's product is scaled by alpha / rank", minimum=0)
    targets: tuple[LoraTarget, ...] = setting(
        ("k", "o", "mlp", "head"),
        (
            "what gets a LoRA in each pass of a layer: q, k and v beside their matrices; o beside attention "
            "and mlp beside the MLP, from the part's input; head beside the output head"
        ),
    )
    chunk_tokens: int = setting(
        48, "targets that are scored, and then learned from in one step", unit="tokens", minimum=1
    )
    batch_documents: int = setting(
        64, "documents side by side, of similar length; no figure depends on it", unit="documents", minimum=1
    )
    lr: float = setting(1e-4, "learning rate of AdamW", minimum=0)
    beta1: float = setting(0.0, "AdamW's decay of the mean", minimum=0, maximum=0.9999)
    beta2: float = setting(0.99, "AdamW's decay of the square", minimum=0, maximum=0.99999)
    eps: float = setting(1e-10, "AdamW's denominator floor", above=0)
    weight_decay: float = setting(0.5, "AdamW's decoupled weight decay", minimum=0)
    max_seconds: float = setting(
        600.0,
        "its own clock: over it, it stops and there is no figure",
        unit="seconds",
        above=0,
    )

    def check(self) -> None:
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets = {self.targets}: name at least one target, and each once")
