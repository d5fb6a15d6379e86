"""Starting points of a run: a built-in preset, a preset of the user, a run file, or an earlier run.

A preset of the user is a run file in the folder `presets`, or in a folder that FAIRWAY_PRESETS names. Each
starting point is a built-in preset with other settings, so a run of it needs none of these files again. It
imports neither Prefect nor torch.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from flows.inputs.run_file import ENDING, PRESET, RunFile
from presets import PRESETS, load_preset
from schemas.errors import SpecError
from schemas.pipeline import PipelineSpec

FOLDER = "presets"
VARIABLE = "FAIRWAY_PRESETS"


@dataclass(frozen=True)
class Start:
    """What a run starts from: a built-in preset and the spec that its settings give."""

    preset: str
    spec: PipelineSpec


def user_presets() -> dict[str, Path]:
    """The user's presets by name: the TOML files of the folder `presets` here, or of those that
    FAIRWAY_PRESETS names, with `:` between them. Of two with one name, the first.
    """
    folders = [Path(name) for name in os.environ.get(VARIABLE, FOLDER).split(os.pathsep) if name]
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.expanduser().glob(f"*{ENDING}")):
            if not path.name.startswith("."):
                found.setdefault(path.stem, path)
    return found


def preset_names() -> tuple[str, ...]:
    """The built-in presets, then the user's."""
    return tuple(dict.fromkeys([*PRESETS, *user_presets()]))


def start_of_preset(name: str) -> Start:
    """The built-in preset or the user's preset of this name.

    Raises SpecError naming the nearest for an unknown name, and with file and line for a file with an error.
    """
    own = user_presets().get(name)
    if own is None:
        return Start(name, load_built_in(name))
    if name in PRESETS:
        raise SpecError(f"{own}: {name} is the name of a built-in preset. Rename the file")
    return start_of_file(own)


def start_of_file(path: Path, seen: tuple[Path, ...] = ()) -> Start:
    """What the run file at `path` starts from; its preset may be another preset of the user.

    Raises SpecError with file and line.
    """
    file, own = RunFile(path), user_presets()
    above = own.get(file.preset) if file.preset not in PRESETS else None
    if above is None:
        try:
            base = Start(file.preset, load_built_in(file.preset))
        except SpecError as error:
            raise file.error(PRESET, str(error).removeprefix(PRESET)) from error
    elif above.resolve() in (path.resolve(), *seen):
        raise file.error(PRESET, f" = {file.preset!r}: leads back to this file. Name another preset")
    else:
        base = start_of_file(above, (path.resolve(), *seen))
    return Start(base.preset, file.spec(base.spec))


def load_built_in(name: str) -> PipelineSpec:
    """The built-in preset. Raises SpecError naming the nearest of all presets, the user's included."""
    if name in PRESETS:
        return load_preset(name)
    near = difflib.get_close_matches(name, preset_names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise SpecError(f"preset = {name!r}: {hint}there are {', '.join(preset_names())}")
