"""A corpus in object storage, here a folder: found by patterns, hashed once, checked when it is read."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import SpecError, StageError
from schemas.tokenize_corpus import FilesCorpus, TokenizeSpec
from stages.corpora import documents, locate, objects
from stages.store.hashing import FileHashes

pytest.importorskip("obstore", reason="needs the extra remote")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three objects, of each kind that is read in another way, in a folder whose name has a space and a %."""
    folder = tmp_path / "a bucket %20"
    (folder / "deep" / "er").mkdir(parents=True)
    lines = "".join(json.dumps({"text": f"line {number}"}) + "\n" for number in range(3))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "b.txt").write_text("one text\r\n")
    pq.write_table(pa.table({"text": ["row 0", "row 1"]}), folder / "deep" / "er" / "c.parquet")
    return folder


def spec_of(*paths: str) -> TokenizeSpec:
    return TokenizeSpec(corpus=FilesCorpus(paths=paths))


def names(spec: TokenizeSpec) -> list[str]:
    return [Path(file.path).name for file in locate(spec).files]


def test_objects_give_the_documents_and_digests_of_the_same_files(folder: Path) -> None:
    here, there = spec_of(f"{folder}/**/*"), spec_of(f"file://{folder}/**")
    manifest, found = locate(here), locate(there)
    assert found.identity() == manifest.identity()
    texts = list(documents(there.corpus, found))
    assert texts == list(documents(here.corpus, manifest))
    assert texts == ["line 0", "line 1", "line 2", "one text\n", "row 0", "row 1"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("b.txt", ["b.txt"]),
        ("*", ["a.jsonl.gz", "b.txt"]),
        ("[ab].*", ["a.jsonl.gz", "b.txt"]),
        ("[!a].txt", ["b.txt"]),
        ("?.txt", ["b.txt"]),
        ("**/*.parquet", ["c.parquet"]),
        ("deep/**/c.parquet", ["c.parquet"]),
        ("*/er/*", ["c.parquet"]),
    ],
)
def test_patterns_find_what_they_find_among_files(folder: Path, pattern: str, found: list[str]) -> None:
    assert names(spec_of(f"file://{folder}/{pattern}")) == found
    assert names(spec_of(f"{folder}/{pattern}")) == found


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("file:///nowhere/at/all/*.txt", "matches no object"),
        ("{folder}/*.csv", r"corpus\.paths = file://.*\*\.csv: matches no object"),
        ("{folder}/deep", r"matches no object \(it is a folder; a pattern ends with /\*\)"),
        ("ftp://host/x.txt", r"is no address\. Give s3://BUCKET"),
        ("s3://bucket", "is no address"),
        ("s3://key:secret@bucket/x.txt", "without user, password"),
    ],
)
def test_what_names_no_object_is_refused_with_the_remedy(folder: Path, path: str, said: str) -> None:
    with pytest.raises(SpecError, match=said) as refused:
        locate(spec_of(path.format(folder=f"file://{folder}")))
    assert "secret" not in str(refused.value)


def test_an_object_is_hashed_once_and_again_when_it_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = objects._pieces

    def counted(address: str) -> Any:
        read.append(address)
        return real(address)

    monkeypatch.setattr(objects, "_pieces", counted)
    spec, memory = spec_of(f"file://{folder}/*"), tmp_path / "memory"
    first = locate(spec, FileHashes(None), memory)
    assert len(read) == 2
    assert locate(spec, FileHashes(None), memory) == first
    assert len(read) == 2
    (folder / "b.txt").write_text("another text")
    changed = locate(spec, FileHashes(None), memory)
    assert len(read) == 3
    assert changed.files[0] == first.files[0]
    assert changed.files[1] != first.files[1]
    with pytest.raises(StageError, match=r"changed since it was hashed: file://.*b\.txt is another object"):
        list(documents(spec.corpus, first))


def test_unusable_text_is_named_by_its_address_and_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    (folder / "b.txt").write_bytes(b"caf\xe9 au lait, encore du caf\xe9")
    spec = spec_of(f"file://{folder}/b.txt")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(SpecError, match=rf"^file://{folder}/b\.txt: byte 3 is not valid UTF-8"):
        list(documents(spec.corpus, locate(spec), FileHashes(scratch / "hashes.sqlite")))
    assert list(scratch.iterdir()) == []


def test_without_the_package_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.exceptions", None)
    with pytest.raises(SpecError, match=r"s3://b/x\.txt: needs the package obstore\. Install it: "):
        locate(spec_of("s3://b/x.txt"))
