"""What a run is asked to do: preset and overrides -> the spec, and the name that tells runs apart. Imports neither Prefect nor torch."""

from collections.abc import Sequence

from presets import load_preset
from schemas.base import fingerprint
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineSpec


def resolve(preset: str, overrides: Sequence[str]) -> PipelineSpec:
    """The preset with the overrides applied. Raises SpecError for an unknown preset, setting or value."""
    return apply_overrides(load_preset(preset), overrides)


def run_label(preset: str, spec: PipelineSpec) -> str:
    """`demo-seed1337-5e884898`: preset, seed, and the beginning of the spec's fingerprint."""
    return f"{preset}-seed{spec.train.seed}-{fingerprint(spec)[:8]}"
