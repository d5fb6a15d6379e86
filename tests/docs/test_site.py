"""The pages of `make docs`: no link leads out of the site, and no page is missing from its navigation."""

import importlib.util
import json
import re
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def build_site() -> Any:
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_of_the_site_leads_to_a_page_or_picture_of_it(tmp_path: Path) -> None:
    build_site().build(ROOT, tmp_path)
    pages = tmp_path / "pages"
    there = {str(path.relative_to(pages)) for path in pages.rglob("*") if path.is_file()}
    links = [
        (name, normpath(join(dirname(name), target)))
        for name in there
        if name.endswith(".md")
        for target in re.findall(r"\]\(([^)#\s]+)", without_code((pages / name).read_text(encoding="utf-8")))
        if not re.match(r"[a-z]+:", target)
    ]
    assert len(links) > 100
    assert [link for link in links if link[1] not in there] == []


def test_every_page_is_in_the_navigation(tmp_path: Path) -> None:
    build_site().build(ROOT, tmp_path)
    settings = (tmp_path / "zensical.toml").read_text(encoding="utf-8")
    pages = {str(path.relative_to(tmp_path / "pages")) for path in (tmp_path / "pages").rglob("*.md")}
    assert {page for page in pages if json.dumps(page) not in settings} == set()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
