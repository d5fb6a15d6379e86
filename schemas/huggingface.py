"""A run's model as a folder for Hugging Face Transformers."""

from pydantic import Field, NonNegativeFloat, PositiveInt

from schemas.base import Schema
from schemas.sample import Weights

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer.model"
TRANSFORMERS_PACKAGES = ("torch", "transformers", "sentencepiece")
"""Packages that a reader of the folder installs; nothing of Fairway is among them."""


INSTALL_COMMAND = f"pip install {' '.join(TRANSFORMERS_PACKAGES)}"
LARGEST_DIFFERENCE = 1e-5
"""Between a logit of the folder and ours, both in float32."""


class FolderCheck(Schema):
    """The folder loaded with Transformers beside the run's own model."""

    transformers: str = Field(description="its version")
    num_tokens: PositiveInt = Field(description="validation tokens whose logits and ids were compared")
    largest_difference: NonNegativeFloat = Field(description="of a logit")

    @property
    def sentence(self) -> str:
        return (
            f"Transformers {self.transformers}: ids equal, logits differ by {self.largest_difference:.1e} at "
            f"most, on {self.num_tokens:,} validation tokens"
        )


class HuggingFaceFolder(Schema):
    """A written folder."""

    source: str = Field(description="name of the run")
    weights: Weights
    folder: str
    num_parameters: PositiveInt
    val_bpb: float = Field(description="bits per byte of these weights, non-overlapping windows")
    files: dict[str, PositiveInt] = Field(description="name of each file and its bytes")
    check: FolderCheck | None = Field(None, description="None: not asked for")
