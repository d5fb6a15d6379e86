"""What a run is asked to do: preset, form fields, overrides -> the spec, its name, its options. Imports neither Prefect nor torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.form import form_overrides
from presets import load_preset
from schemas.base import fingerprint
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineSpec
from schemas.quantize import QuantizeSpec
from schemas.runtime import RunOptions
from stages.bundle import ENTRY_MODULE, bundle


def resolve(preset: str, overrides: Sequence[str], fields: Mapping[str, Any] | None = None) -> PipelineSpec:
    """The preset with the filled form fields and then the overrides applied. Raises SpecError for an unknown preset, setting or value."""
    base = load_preset(preset)
    return apply_overrides(base, [*form_overrides(base, fields or {}), *overrides])


def run_label(preset: str, spec: PipelineSpec) -> str:
    """`demo-seed1337-5e884898`: preset, seed, and the beginning of the spec's fingerprint."""
    return f"{preset}-seed{spec.train.seed}-{fingerprint(spec)[:8]}"


def quantize_spec(spec: PipelineSpec) -> QuantizeSpec:
    """The quantization's settings; where a limit is to be met, with the bytes of the script that will ship beside the blob."""
    fit = spec.quantize.fit
    if fit.limit_bytes is None or fit.code_bytes is not None:
        return spec.quantize
    source, _ = bundle(ENTRY_MODULE, spec.package.keep_comments)
    return replace(spec.quantize, fit=replace(fit, code_bytes=len(source.encode())))


def run_options(given: RunOptions | None) -> RunOptions:
    """The options, with the store that FAIRWAY_STORE names where they name none."""
    options = given or RunOptions()
    if "store" in options.model_fields_set or not (store := os.environ.get("FAIRWAY_STORE")):
        return options
    return options.derive(store=store)
