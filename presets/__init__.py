"""Named pipeline specs, each a function that derives from another: smoke, demo, medium, record,
reference, winner, winner-1gpu."""

from collections.abc import Callable
from difflib import get_close_matches

from presets.demo import demo, smoke
from presets.medium import medium
from presets.record import record, reference
from presets.winner import winner, winner_1gpu
from schemas.errors import SpecError
from schemas.pipeline import PipelineSpec

PRESETS: dict[str, Callable[[], PipelineSpec]] = {
    "smoke": smoke,
    "demo": demo,
    "medium": medium,
    "record": record,
    "reference": reference,
    "winner": winner,
    "winner-1gpu": winner_1gpu,
}


def load_preset(name: str) -> PipelineSpec:
    """The preset's spec. Raises SpecError naming the nearest preset for an unknown name."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SpecError(f"preset = {name!r}: {hint}there are {', '.join(PRESETS)}")
    return PRESETS[name]()
