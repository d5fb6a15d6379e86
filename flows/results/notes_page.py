"""Notes, tags and pin of a run in Markdown, for a page in the browser.

Imports neither Prefect nor torch.
"""

from schemas.notes import RunNotes
from schemas.pipeline import PipelineReport
from schemas.printable import printable


def notes_markdown(report: PipelineReport, notes: RunNotes) -> str:
    """Each note with its number and time, as a block in which nothing is markup."""
    tags = ", ".join(f"`{tag}`" for tag in notes.tags) or "none"
    lines = [f"# {report.name}", f"Tags: {tags}. {'Pinned.' if notes.pinned else 'Not pinned.'}"]
    for number, note in enumerate(notes.notes, 1):
        text = "\n".join(f"    {line}" for line in printable(note.text).splitlines())
        lines += [f"## {number}, {note.created_at}", text]
    return "\n\n".join(lines)
