"""Paths and patterns: which files they name, in which order, each once; and what they must not lead to."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import SpecError
from schemas.stages import STAGES
from schemas.tokenize_corpus import FilesCorpus, TokenizeSpec
from stages.corpora import documents, locate
from stages.store.keys import stage_key


def spec_for(*paths: Path | str, **corpus: Any) -> TokenizeSpec:
    return TokenizeSpec(corpus=FilesCorpus(paths=tuple(map(str, paths)), **corpus))


def read(*paths: Path | str, **corpus: Any) -> list[str]:
    spec = spec_for(*paths, **corpus)
    return list(documents(spec.corpus, locate(spec)))


class Tree:
    """Text files by path, their content their own path, and links."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self, *names: str) -> "Tree":
        for name in names:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(name)
        return self

    def link(self, name: str, target: str) -> "Tree":
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).symlink_to(target)
        return self

    def read(self, *patterns: str) -> list[str]:
        return read(*(self.root / pattern for pattern in patterns))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_loop_of_links_ends_and_each_file_is_read_once(tree: Tree) -> None:
    tree.files("a/x.txt", "a/b/y.txt").link("a/self", ".").link("a/b/up", "..").link("a/b/far", "../../a")
    assert tree.read("a/**/*.txt") == ["a/b/y.txt", "a/x.txt"]
    assert tree.read("a/self/self/*.txt") == ["a/x.txt"]
    assert tree.read("**") == ["a/b/y.txt", "a/x.txt"]


def test_a_link_to_itself_is_named(tree: Tree) -> None:
    tree.files("a.txt").link("b.txt", "b.txt").link("c", "c")
    assert tree.read("a*") == ["a.txt"]
    with pytest.raises(SpecError, match=r"corpus\.paths = .*b\.txt: cannot be read.*circle"):
        tree.read("b.txt")
    with pytest.raises(SpecError, match=r"cannot be read.*circle"):
        tree.read("*.txt")


def test_links_to_files_keep_their_names_and_are_read_once(tree: Tree) -> None:
    tree.files("blobs/9", "blobs/1").link("links/a.txt", "../blobs/9").link("links/b.txt", "../blobs/1")
    assert tree.read("links/*.txt") == [
        "blobs/9",
        "blobs/1",
    ]  # as on the hub's cache: no ending but the link's
    tree.files("many/z.txt").link("many/again.txt", "z.txt")
    os.link(tree.root / "many/z.txt", tree.root / "many/hard.txt")
    assert tree.read("many/*.txt", "many/again.txt") == ["many/z.txt"]


def test_a_link_that_leads_nowhere_is_named(tree: Tree) -> None:
    tree.files("a.txt").link("gone.txt", "nowhere")
    for pattern in ("gone.txt", "*.txt"):
        with pytest.raises(SpecError, match=r"gone\.txt.*is a link .*(Repair|remove)"):
            tree.read(pattern)


def test_however_a_path_is_spelt_the_key_is_the_same(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.files("w/b.txt", "x/a.txt", "x/c.txt").link("aaa", "w").link("zzz", "x")
    monkeypatch.chdir(tree.root)
    monkeypatch.setenv("HOME", str(tree.root))
    root = tree.root
    spellings = [
        (f"{root}/w/*.txt", f"{root}/x/*.txt"),
        ("x/*.txt", "w/b.txt"),
        ("w/../x//a.txt", "./w/b.txt", "x/../x/c.txt", "x/c.txt"),
        ("~/aaa/b.txt", "~/zzz/?.txt"),
        ("**/*.txt",),
    ]
    keys = set()
    for paths in spellings:
        spec = spec_for(*paths)
        assert list(documents(spec.corpus, locate(spec))) == ["w/b.txt", "x/a.txt", "x/c.txt"]
        keys.add(stage_key(STAGES["tokenize_corpus"], spec, {"manifest": locate(spec)}))
    assert len(keys) == 1


def test_the_key_follows_content_order_column_and_format(tree: Tree) -> None:
    def key(*names: str, **corpus: Any) -> str:
        spec = spec_for(*(tree.root / name for name in names), **corpus)
        return stage_key(STAGES["tokenize_corpus"], spec, {"manifest": locate(spec)})

    tree.files("a.txt", "b.txt")
    both = key("*.txt")
    assert key("a.txt", "b.txt") == key("b.txt", "a.txt", format="txt") == both
    assert len({both, key("a.txt"), key("*.txt", format="jsonl"), key("*.txt", text_column="body")}) == 4
    (tree.root / "a.txt").rename(tree.root / "c.txt")
    assert key("*.txt") != both  # another order
    (tree.root / "b.txt").write_text("other")
    assert key("*.txt") != both


def test_files_are_read_in_the_order_of_their_paths(tree: Tree) -> None:
    tree.files("hive/lang=en/part=0/x.txt", "hive/lang=de/part=1/x.txt", "hive/lang=de/part=0/y.txt")
    assert tree.read("hive/**/*.txt") == [
        "hive/lang=de/part=0/y.txt",
        "hive/lang=de/part=1/x.txt",
        "hive/lang=en/part=0/x.txt",
    ]


def test_a_name_with_brackets_is_a_name_where_there_is_one(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    tree.files("br[1]/a.txt", "br[1]/[b].txt", "br[1]/b.txt", "set1/x.txt", "set2/x.txt", "set[3/x.txt")
    caplog.set_level("INFO")
    assert tree.read("br[1]/*.txt") == ["br[1]/[b].txt", "br[1]/a.txt", "br[1]/b.txt"]
    assert "br[1] is a name in" in caplog.text
    assert tree.read("br[1]/[b].txt") == ["br[1]/[b].txt"]
    assert "[b].txt is the name of a file, so it is not used as a pattern" in caplog.text
    assert tree.read("br[1]/**/[ab].txt") == ["br[1]/a.txt", "br[1]/b.txt"]
    assert tree.read("set[12]/x.txt") == ["set1/x.txt", "set2/x.txt"]
    assert tree.read("set[3/*") == ["set[3/x.txt"]
    assert tree.read("br[[]1]/a.*") == ["br[1]/a.txt"]
    with pytest.raises(SpecError, match=r"set\[45\].*matches no file.*a bracket itself is written \[\[\]"):
        tree.read("set[45]/x.txt")


def test_hidden_files_are_left_out_and_counted(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree.files("a.txt", ".b.txt", "._a.txt", ".hidden/c.txt", "sub/.d.txt", "sub/e.txt", "sub/.x.log")
    caplog.set_level("INFO")
    spec = spec_for(tree.root / "**/*.txt")
    manifest = locate(spec)
    assert [Path(file.path).name for file in manifest.files] == ["a.txt", "e.txt"]
    assert manifest.num_hidden_files == 3
    assert "left out: 3 hidden files, 1 hidden folders" in manifest.source
    assert "left out: 3 hidden files, 1 hidden folders" in caplog.text
    assert tree.read(".*.txt") == [".b.txt"]
    assert tree.read(".hidden/*") == [".hidden/c.txt"]
    (tree.root / "a.txt").unlink()
    with pytest.raises(SpecError, match=r"matches no file.*2 hidden files were left out"):
        tree.read("*.txt")


def test_a_folder_is_answered_with_a_glob_that_works(tree: Tree) -> None:
    tree.files("br[1]/a.txt")
    with pytest.raises(SpecError, match=r"is a folder. Give a glob of its files, for example") as caught:
        tree.read("br[1]")
    assert read(str(caught.value).rpartition(" ")[2]) == ["br[1]/a.txt"]


def special_paths(root: Path) -> Iterator[tuple[str, str]]:
    os.mkfifo(root / "pipe.txt")
    yield str(root / "pipe.txt"), r"is not a file but a pipe.*must be written to one first"
    yield str(root / "*.txt"), r"pipe\.txt.*is not a file but a pipe"
    yield "/dev/null", r"/dev/null.*is not a file but a device"
    yield str(root / ("x" * 300)), "cannot be read.*too long.*shorter path"
    yield str(root) + "/x" * 3000, "cannot be read.*too long.*shorter path"
    yield str(root / "a\0b"), "NUL character"
    yield "~no_such_user/a.txt", "no_such_user.*without ~|matches no file"
    yield "", "is a folder"
    (root / "plain.jsonl").write_bytes(b"{}")
    yield str(root / "plain.jsonl/a.txt"), "matches no file"


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    for path, said in special_paths(tmp_path):
        with pytest.raises(SpecError, match=f"(?s)^tokenize.corpus.paths.*{said}") as caught:
            read(path)
        assert len(str(caught.value)) < 5000


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(SpecError, match=r"the name '.*caf\\udce9\.txt' is not valid UTF-8. Rename"):
        read(tmp_path / "*.txt")


def test_a_folder_that_may_not_be_searched_is_named(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.files("a/x.txt", "b/y.txt")
    scandir = os.scandir

    def without_b(path: str) -> Any:
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_b)
    with pytest.raises(
        SpecError, match=r"corpus\.paths = .*cannot be read at .*/b \(Permission denied\).*permissions"
    ):
        tree.read("**/*.txt")
