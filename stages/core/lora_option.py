"""Test-time training as an option of the packaged program.

A run without it packages a program without it: stages/packaging/script.py.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from schemas.lora_recipe import LoraRecipe
from schemas.lora_settings import LoraSettings
from schemas.recipe import Recipe
from schemas.scoring_settings import ScoringSettings
from schemas.settings_base import from_dict
from stages.core.bits_per_byte import TokenBytes
from stages.core.loader import TokenStream
from stages.core.lora import score_learning
from stages.core.model import GPT
from stages.core.scoring import score_as_dict, score_line

LORA_OFF = "off"


def add_lora_option(parser: argparse.ArgumentParser, recipe: Recipe | None) -> None:
    """`--test-time-training` with the recipe's settings, as JSON, for its default."""
    given = json.dumps(asdict(recipe.test_time_training)) if isinstance(recipe, LoraRecipe) else LORA_OFF
    parser.add_argument(
        "--test-time-training",
        type=_lora_settings,
        default=given,
        help="score once more with a LoRA for each document: its settings as JSON, or off",
    )


def _lora_settings(text: str) -> LoraSettings:
    if text == LORA_OFF:
        return LoraSettings()
    try:
        return from_dict(LoraSettings, json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{error}; give settings as JSON, or {LORA_OFF}") from error


def lora_scores(
    options: argparse.Namespace,
    model: GPT,
    text: tuple[TokenStream, TokenBytes],
    scoring: ScoringSettings,
    dtype: torch.dtype,
    progress: Callable[[str], Callable[[float, float, str], None]],
    group: dist.ProcessGroup | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """{"test_time_training": its scores}, as plain JSON types, or {} where it is off."""
    settings: LoraSettings = options.test_time_training
    if not settings.on:
        return {}
    found = score_learning(model, *text, scoring, settings, dtype, progress("test-time training"), group)
    without = score_as_dict(found.without, found.without_seconds)
    say(score_line("without_test_time_training", without))
    told: dict[str, Any] = {"adapted": None, "without": without}
    if found.adapted is None:
        say(
            f"test-time training: no score, its clock of {settings.max_seconds:g} s ran out at "
            f"{found.done_share:.1%} of the targets"
        )
    else:
        told["adapted"] = score_as_dict(found.adapted, found.seconds)
        say(score_line("test_time_training", told["adapted"]))
    told |= {"num_documents": found.num_documents, "num_steps": found.num_steps}
    told |= {"done_share": found.done_share, "seconds": found.seconds}
    return {"test_time_training": told}
