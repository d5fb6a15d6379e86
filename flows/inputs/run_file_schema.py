"""JSON Schema of run files: each setting with its type, help, unit and limits, as an editor shows them."""

from typing import Any

from pydantic import TypeAdapter

from flows.inputs.run_file import PRESET
from flows.inputs.starts import preset_names
from schemas.introspect import Child, children, is_nullable, variants
from schemas.pipeline import PipelineSpec

_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_EMPTY = {"const": ""}  # TOML has no null


def run_file_schema() -> dict[str, Any]:
    """The schema. The presets are those of this moment, the user's included."""
    sections = _object_of(PipelineSpec)
    preset = {"enum": list(preset_names()), "description": "the preset that the run starts from"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Fairway run file",
        **sections,
        "properties": {PRESET: preset, **sections["properties"]},
        "required": [PRESET],
    }


def _object_of(kind: Any) -> dict[str, Any]:
    """Every setting of a section may be left out: the preset has it."""
    properties = {name: _of(child) for name, child in children(kind, None).items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _of(child: Child) -> dict[str, Any]:
    told = {"description": child.summary} if child.summary else {}
    if kinds := variants(child.hint):
        return {"anyOf": [_object_of(kind) for kind in kinds.values()], **told}
    if children(child.hint, None):
        return {**_object_of(child.hint), **told}
    return {**_value(child), **told}


def _value(child: Child) -> dict[str, Any]:
    given = TypeAdapter(child.hint).json_schema()
    schema = _plain(given, given.pop("$defs", {}))
    limits = {_LIMITS[bound]: value for bound, value in child.limits}
    target = schema["items"] if schema.get("type") == "array" and limits else schema
    if not is_nullable(child.hint):
        target.update(limits)
        return schema
    plain = [branch for branch in schema.pop("anyOf") if branch.get("type") != "null"]
    return {**schema, "anyOf": [*(branch | limits for branch in plain), _EMPTY]}


def _plain(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with each definition in its place, and without defaults: the preset has those."""
    if isinstance(schema, list):
        return [_plain(value, definitions) for value in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _plain(value, definitions) for name, value in schema.items() if name != "default"}
