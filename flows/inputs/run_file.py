"""Run files: a run as TOML, with the name of its preset and the settings that differ from it.

    preset = "demo"

    [train.schedule]
    max_steps = 880

An empty text ("") empties an optional setting, because TOML has no null. Paths in a file count from the
folder in which the command runs. It imports neither Prefect nor torch.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from flows.inputs.ignored import as_given, refuse_ignored
from schemas.errors import SpecError
from schemas.introspect import SettingInfo, describe_fields, every_setting
from schemas.overrides import apply_overrides, as_override
from schemas.pipeline import PipelineSpec

PRESET = "preset"
ENDING = ".toml"
Place = tuple[str, ...]
_LEADING_NAME = re.compile(r"[\w.]+")


class RunFile:
    """A run file that was read: its preset's name and its settings, and the line of each."""

    def __init__(self, path: Path) -> None:
        """Raises SpecError, with file and line, for a file that cannot be read or that names no preset."""
        self.path = path
        self._source = _read(path)
        try:
            tree = tomllib.loads(self._source)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"{path}: is not TOML: {error}") from error
        self.preset = self._preset_of(tree)
        leaves = [leaf for leaf in _leaves(tree) if leaf.name != PRESET]
        self._places = {PRESET: (PRESET,)} | {leaf.name: leaf.place for leaf in leaves}
        self.overrides = tuple(as_override(leaf.name, leaf.value) for leaf in leaves)

    def spec(self, base: PipelineSpec) -> PipelineSpec:
        """`base` with the file's settings applied.

        Raises SpecError that names file, line, setting and remedy.
        """
        try:
            spec = apply_overrides(base, self.overrides)
            as_before = {as_override(info.name, info.value) for info in describe_fields(base)}
            # A file may list every setting: what the preset has anyway changes no key.
            changing = [setting for setting in self.overrides if setting not in as_before]
            refuse_ignored(base, spec, as_given(changing))
        except SpecError as error:
            raise SpecError("\n".join(map(self._located, str(error).splitlines()))) from error
        return spec

    def error(self, name: str, message: str) -> SpecError:
        """An error about the setting of this name, with file and line."""
        return SpecError(self._located(f"{name}{message}"))

    def _preset_of(self, tree: Mapping[str, Any]) -> str:
        if isinstance(name := tree.get(PRESET), str):
            return name
        if PRESET in tree:
            line = line_of(self._source, (PRESET,))
            raise SpecError(
                f"{self.path}, line {line}: {PRESET} = {name!r}: must be the name of a preset in quotes"
            )
        near = difflib.get_close_matches(PRESET, [key for key in tree if key not in _SECTIONS], n=1)
        hint = (
            f", line {line_of(self._source, (near[0],))}: {near[0]}: there is no such setting. Did you mean "
            f"{PRESET}?"
            if near
            else f': names no preset. Write one before its first section, for example {PRESET} = "demo"'
        )
        raise SpecError(f"{self.path}{hint}")

    def _located(self, message: str) -> str:
        """The message behind file and line of the setting that it begins with."""
        match = _LEADING_NAME.match(message)
        name = match[0].rstrip(".") if match else ""
        place = next((place for dotted, place in self._places.items() if _overlap(name, dotted)), None)
        line = "" if place is None else f", line {line_of(self._source, place)}"
        return f"{self.path}{line}: {message}"


def run_file_text(
    preset: str, differing: Mapping[str, Any], about: str, others: Sequence[SettingInfo] = ()
) -> str:
    """The text of a run file: the preset, then the settings that differ from it, by their dotted names.

    `about` is its first comment. Each of `others` is a comment in its section, with help, unit and bounds.
    """
    sections: dict[str, list[str]] = {}
    for name, value in differing.items():
        section, _, last = name.rpartition(".")
        sections.setdefault(section, []).append(f"{last} = {_as_toml(value, multiline=True)}")
    for info in others:
        section, _, last = info.name.rpartition(".")
        words = f"  # {info.summary}" if info.summary else ""
        sections.setdefault(section, []).append(f"# {last} = {_as_toml(info.value)}{words}")
    head = [*(f"# {line}" for line in about.splitlines()), f"{PRESET} = {_as_toml(preset)}"]
    blocks = [head, *([f"[{section}]", *lines] for section, lines in sections.items())]
    return "\n".join("".join(f"{line}\n" for line in block) for block in blocks)


def line_of(source: str, place: Place) -> int:
    """The line, from 1, at which the statement begins that brings `place` into the TOML text.

    It looks for the shortest beginning of the text that is TOML and has it, because tomllib tells no lines.
    """
    lines = source.split("\n")

    def beginning(count: int) -> tuple[int, Mapping[str, Any]]:
        """The longest that is TOML, of at most so many lines."""
        while True:
            try:
                return count, tomllib.loads("\n".join(lines[:count]))
            except tomllib.TOMLDecodeError:  # ends inside a value of several lines
                count -= 1

    without, having = 0, len(lines)
    while having - without > 1:
        middle = (without + having) // 2
        if _has(beginning(middle)[1], place):
            having = middle
        else:
            without = middle
    return beginning(having - 1)[0] + 1


@dataclass(frozen=True)
class _Leaf:
    """A value of a TOML file: its dotted name, its place, and itself as plain JSON types."""

    name: str
    place: Place
    value: Any


# Tables that may be empty in a file.
_SECTIONS = {
    ".".join(parts[:depth])
    for parts in (name.split(".") for name in every_setting(PipelineSpec))
    for depth in range(1, len(parts))
}


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError as error:
        raise SpecError(
            f"{path}: there is no such file. `fairway describe demo --toml > {path.name}` writes one"
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path}: byte {error.start:,} is not UTF-8, as TOML must be. Save it as UTF-8"
        ) from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}). Give a TOML file") from error


def _leaves(tree: Mapping[str, Any], above: Place = ()) -> Iterator[_Leaf]:
    """The values of a file; of an empty table itself where no section has its name."""
    for key, value in tree.items():
        place = (*above, key)
        name = ".".join(place)
        if isinstance(value, dict) and (value or name in _SECTIONS):
            yield from _leaves(value, place)
        else:  # a date is no setting, and becomes the text that the message shows
            yield _Leaf(name, place, json.loads(json.dumps(value, default=str)))


def _has(tree: Any, place: Place) -> bool:
    for key in place:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _overlap(one: str, other: str) -> bool:
    """Whether two dotted names are the same, or one lies inside the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _as_toml(value: Any, multiline: bool = False) -> str:
    """Plain JSON types as TOML; None is the empty text, and an object in a list is an inline table."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        array = tomlkit.array().multiline(multiline)
        for entry in value:
            table = tomlkit.inline_table()
            table.update(entry)
            array.append(table)
        return array.as_string()
    return tomlkit.item("" if value is None else value).as_string()
