"""The site has every page of the repository, and its links stay inside it."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site() -> Any:
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "[a](docs/gpu.md#x)", "[a](gpu.md#x)"),
        ("README.md", "[MIT](LICENSE)", "[MIT](licence.md)"),
        ("docs/README.md", "[a](../README.md)", "[a](start.md)"),
        ("docs/README.md", "[a](decisions)", "[a](decisions/index.md)"),
        ("docs/decisions/0001-x.md", "[a](../log.md)", "[a](../log.md)"),
        ("docs/decisions/0001-x.md", "[a](../README.md)", "[a](../index.md)"),
        ("docs/gpu.md", "[the code](../stages/train.py)", "the code"),
        ("docs/README.md", "[the index's text](package.md)", "the index's text"),
        ("docs/gpu.md", "[a](https://docs.prefect.io) [b](#here)", "[a](https://docs.prefect.io) [b](#here)"),
        ("README.md", "[![p](docs/images/p.png)](docs/gpu.md)", "[![p](images/p.png)](gpu.md)"),
        ("README.md", "```\n[a](docs/gpu.md)\n```", "```\n[a](docs/gpu.md)\n```"),
    ],
)
def test_a_link_leads_to_the_same_page_in_the_site(site: Any, source: str, link: str, expected: str) -> None:
    assert site.inside(link, source) == expected


def test_every_page_is_in_the_navigation_once(site: Any, tmp_path: Path) -> None:
    site.build(ROOT, tmp_path)
    settings = tomllib.loads((tmp_path / "zensical.toml").read_text(encoding="utf-8"))["project"]
    shown = re.findall(r"[\w./-]+\.md", str(settings["nav"]))
    folder = tmp_path / settings["docs_dir"]
    assert sorted(shown) == sorted(str(page.relative_to(folder)) for page in folder.rglob("*.md"))
    assert (folder / "images" / "chain.svg").is_file()
