"""The pages of the repository, laid out for Zensical, which makes the site of them.

    python docs/build_site.py FOLDER        writes FOLDER/pages and FOLDER/zensical.toml

The navigation follows docs/README.md, so that a page of the index is in the site. README.md, CONTRIBUTING.md,
CHANGELOG.md and LICENSE become pages. A link to another file outside docs/ becomes its text.
"""

import json
import re
import shutil
import sys
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "start.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "licence.md",
}
"""Files of the repository's root, and their pages in the site."""
HOME, DECISIONS = "index.md", "decisions/index.md"
NO_PAGES = ("package.md", "build_site.py", "site.toml")

_LINK = re.compile(r"(!?)\[((?:!\[[^\]]*\]\([^)\s]*\)|[^\[\]])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^\*\*(.+?)\.?\*\*(.*?)(?=^\*\*|^`|\Z)", re.MULTILINE | re.DOTALL)


def navigation(index: str, decisions: list[str]) -> list[dict[str, Any]]:
    """A section for each paragraph of the index that begins in bold, with its pages in order.

    `index` is the text of docs/README.md, `decisions` the file names in docs/decisions.
    """
    seen: set[str] = set()
    sections: list[dict[str, Any]] = [{"Documentation": HOME}]
    for title, text in _SECTION.findall(index):
        found = (place(target.partition("#")[0], "docs/README.md") for _, _, target in _LINK.findall(text))
        pages = list(dict.fromkeys(page for page in found if page and "/" not in page and page not in seen))
        seen.update(pages)
        sections.append({title: pages})
    more = [page for page in OUTSIDE.values() if page not in seen]
    return [*sections, {"Decisions": [DECISIONS, *(f"decisions/{name}" for name in sorted(decisions))]}] + (
        [{"Project": more}] if more else []
    )


def place(path: str, source: str) -> str | None:
    """Where the site has the file that `source`, a path in the repository, calls `path`.

    None for an address, and for a file that is not in the site.
    """
    if re.match(r"[a-z]+:", path):
        return None
    file = normpath(str(PurePosixPath(source).parent / path))
    if file in OUTSIDE:
        return OUTSIDE[file]
    if file == "docs/decisions":
        return DECISIONS
    if file == "docs/README.md":
        return HOME
    if PurePosixPath(file).name in NO_PAGES:
        return None
    return file.removeprefix("docs/") if file.startswith("docs/") else None


def inside(markdown: str, source: str) -> str:
    """The text of `source`, a path in the repository, with its links as the site has them."""
    page = place(PurePosixPath(source).name, source) or source

    def changed(link: re.Match[str]) -> str:
        mark, text, target = link.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        text, there = _LINK.sub(changed, text), place(path, source)
        if there is None:
            return text
        return f"{mark}[{text}]({relpath(there, str(PurePosixPath(page).parent))}{hash_}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(changed, part) for part in parts)


def pages(root: Path) -> dict[str, str]:
    """Every page of the site by its place, with its text; the list of decisions included."""
    docs = sorted((root / "docs").rglob("*.md"))
    sources = [*OUTSIDE, *(str(path.relative_to(root)) for path in docs if path.name not in NO_PAGES)]
    made = {}
    for source in sources:
        text = (root / source).read_text(encoding="utf-8")
        there = place(PurePosixPath(source).name, source)
        assert there is not None, source
        made[there] = inside(f"# Licence\n\n{text}" if source == "LICENSE" else text, source)
    titles = {path.name: path.read_text(encoding="utf-8").splitlines()[0] for path in docs}
    decisions = sorted(path.name for path in (root / "docs" / "decisions").glob("*.md"))
    listed = "".join(f"- [{titles[name].removeprefix('# ')}]({name})\n" for name in decisions)
    return made | {DECISIONS: f"# Decisions\n\n{listed}"}


def as_toml(value: Any) -> str:
    """Texts, lists and tables as a TOML value on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


def build(root: Path, folder: Path) -> None:
    """Write the pages, the pictures and the settings of the site into `folder`, in place of earlier ones."""
    shutil.rmtree(folder / "pages", ignore_errors=True)
    shutil.copytree(root / "docs" / "images", folder / "pages" / "images")
    for name, text in pages(root).items():
        (folder / "pages" / name).parent.mkdir(exist_ok=True)
        (folder / "pages" / name).write_text(text, encoding="utf-8")
    index = (root / "docs" / "README.md").read_text(encoding="utf-8")
    shown = navigation(index, [path.name for path in (root / "docs" / "decisions").glob("*.md")])
    settings = (root / "docs" / "site.toml").read_text(encoding="utf-8")
    changed = settings.replace("[project]\n", f"[project]\nnav = {as_toml(shown)}\n", 1)
    (folder / "zensical.toml").write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    build(ROOT, Path(sys.argv[1]))
