"""What a run is asked to do: preset, form fields, overrides -> the spec, its name, its options. Imports neither Prefect nor torch."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from flows.form import form_overrides
from presets import load_preset
from schemas.base import fingerprint
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineSpec
from schemas.runtime import RunOptions


def resolve(preset: str, overrides: Sequence[str], fields: Mapping[str, Any] | None = None) -> PipelineSpec:
    """The preset with the filled form fields and then the overrides applied. Raises SpecError for an unknown preset, setting or value."""
    base = load_preset(preset)
    return apply_overrides(base, [*form_overrides(base, fields or {}), *overrides])


def run_label(preset: str, spec: PipelineSpec) -> str:
    """`demo-seed1337-5e884898`: preset, seed, and the beginning of the spec's fingerprint."""
    return f"{preset}-seed{spec.train.seed}-{fingerprint(spec)[:8]}"


def run_options(given: RunOptions | None) -> RunOptions:
    """The options, with the store that FAIRWAY_STORE names where they name none."""
    options = given or RunOptions()
    if "store" in options.model_fields_set or not (store := os.environ.get("FAIRWAY_STORE")):
        return options
    return options.derive(store=store)
