"""Recipe of a run with test-time training.

Apart from the settings, because all stages that score read those and no quantizer. Standard library only: it
ships in the program of a run that has it, and in no other.
"""

from dataclasses import dataclass

from schemas.lora_settings import LoraSettings
from schemas.recipe import Recipe
from schemas.settings_base import setting


@dataclass(frozen=True)
class LoraRecipe(Recipe):
    """A recipe with test-time training in its scores."""

    test_time_training: LoraSettings = setting(LoraSettings(), "LoRA for each document")
