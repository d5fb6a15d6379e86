"""Notes of a run: texts and tags that a user gave it, and whether it is pinned. Never part of an identity."""

from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.errors import SpecError

NOTES_VERSION: Literal[1] = 1
TAG_PATTERN = r"^\w[\w.:=/+-]*$"
MAX_TAG_CHARACTERS = 64
MAX_NOTE_CHARACTERS = 10_000

Tag = Annotated[str, Field(pattern=TAG_PATTERN, max_length=MAX_TAG_CHARACTERS)]


class Note(Schema):
    """One text about a run."""

    created_at: str
    text: str = Field(min_length=1, max_length=MAX_NOTE_CHARACTERS)


class RunNotes(Schema):
    """The notes of one run as they lie in the store.

    Their version is their own: words of a user cannot be computed again, as results of stages can.
    """

    schema_version: Literal[1] = NOTES_VERSION
    notes: tuple[Note, ...] = ()
    tags: tuple[Tag, ...] = ()
    pinned: bool = Field(False, description="gc and forget leave the run alone")

    def with_note(self, text: str, created_at: str) -> "RunNotes":
        """A copy with one more note at the end."""
        return self.derive(notes=(*self.notes, Note(created_at=created_at, text=text)))

    def without_note(self, number: int) -> "RunNotes":
        """A copy without the note of this number; the first one is 1. Raises SpecError if there is none."""
        if not 1 <= number <= len(self.notes):
            raise SpecError(f"--remove = {number}: no such note; the run has {len(self.notes)}")
        return self.derive(notes=self.notes[: number - 1] + self.notes[number:])

    def with_tags(self, tags: tuple[str, ...]) -> "RunNotes":
        """A copy with these tags too, in the order in which they were given."""
        return self.derive(tags=tuple(dict.fromkeys((*self.tags, *tags))))

    def without_tags(self, tags: tuple[str, ...]) -> "RunNotes":
        """A copy without these tags. Raises SpecError for one that the run does not have."""
        if missing := [tag for tag in tags if tag not in self.tags]:
            has = ", ".join(self.tags) or "none"
            raise SpecError(f"TAG = {missing[0]}: the run has no such tag; it has {has}")
        return self.derive(tags=tuple(tag for tag in self.tags if tag not in tags))

    def as_json(self) -> dict[str, Any]:
        """Notes, tags and pin as plain JSON types, without the version."""
        return self.model_dump(mode="json", exclude={"schema_version"})
