"""What a model wrote, for a page in the browser.

Imports neither Prefect nor torch.
"""

from schemas.printable import printable
from schemas.sample import Sample


def sample_markdown(made: Sample) -> str:
    """Each text after its prompt, as a quotation in which nothing is markup."""
    settings = made.settings
    lines = [
        f"# {made.source}, {made.weights} weights",
        "",
        f"Temperature {settings.temperature:g}, top k {settings.top_k}, at most {settings.tokens} tokens.",
    ]
    for item in made.continuations:
        told = f"{item.num_tokens} tokens{', where the model ended the document' if item.ended else ''}"
        lines += ["", f"## Seed {item.seed}: {told}", "", *_quoted(made.prompt + item.text)]
    return "\n".join(lines)


def _quoted(text: str) -> list[str]:
    """A block of code: no character of it means anything, for each line is indented."""
    return [f"    {line}" for line in printable(text).splitlines()]
