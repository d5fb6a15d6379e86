"""Inputs of submissions: what is refused, and in which words."""

import pytest

from schemas.errors import SpecError
from stages.submission.inputs import about_of

GITHUB = "must be letters, digits and hyphens, at most 39, and not begin with a hyphen"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"author": ""}, "--author: must not be empty"),
        ({"author": "A\nB"}, r"--author = 'A\nB': must be one line, without control characters"),
        ({"author": "A" * 121}, f"--author = '{'A' * 121}': must have at most 120 characters"),
        ({"name": " "}, "--name = ' ': must not be empty"),
        ({"blurb": "\x1b[1m"}, r"--blurb = '\x1b[1m': must be one line, without control characters"),
        ({"blurb": "\n"}, r"--blurb = '\n': must be one line, without control characters"),
        ({"github_id": ""}, "--github-id: must not be empty"),
        ({"github_id": "a b"}, f"--github-id = 'a b': {GITHUB}"),
        ({"github_id": "-a"}, f"--github-id = '-a': {GITHUB}"),
        (
            {"author": "", "github_id": "a" * 40},
            f"--author: must not be empty; --github-id = '{'a' * 40}': {GITHUB}",
        ),
    ],
)
def test_details_of_an_author_are_refused_in_words(given: dict[str, str], message: str) -> None:
    details = {"author": "Ada", "github_id": "ada-l", "name": "Title", "blurb": ""}
    assert about_of(**details).model_dump() == details
    with pytest.raises(SpecError) as caught:
        about_of(**details | given)
    assert str(caught.value) == message
