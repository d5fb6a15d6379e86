"""Text, JSON-lines and Parquet files: what is read, in which order, and what is refused with which words."""

import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SpecError, StageError
from schemas.tokenize_corpus import FilesCorpus, TokenizeSpec
from stages.corpora import documents, locate


def read(*paths: Path | str, **corpus) -> list[str]:
    spec = TokenizeSpec(corpus=FilesCorpus(paths=tuple(str(path) for path in paths), **corpus))
    return list(documents(spec.corpus, locate(spec)))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_text_file_is_one_document_as_it_is_but_for_line_ends(tmp_path):
    text = "first line\r\nsecond\u2028 line\n\n\0 עברית 🙂"
    assert read(write(tmp_path / "a.txt", text)) == [text.replace("\r\n", "\n")]


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert read(write(tmp_path / "a.txt", "\ufeffabc")) == ["abc"]
    assert read(write(tmp_path / "a.jsonl", '\ufeff{"text": "abc"}\n')) == ["abc"]


def test_each_json_line_is_a_document_and_blank_lines_are_none(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        '{"text": "one", "id": 1}\n\n{"text": null}\r\n{"text": "t\\u00e9\\n"}\n {"text": ""}',
    )
    assert read(path) == ["one", "", "té\n", ""]


@given(texts=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20), max_size=10))
def test_any_text_comes_back_from_json_lines_and_parquet(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(
        pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())}),
        folder / "a.parquet",
        row_group_size=3,
    )
    assert read(folder / "a.jsonl") == texts
    assert read(folder / "a.parquet") == texts


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_columns_of_any_string_type_are_read(tmp_path, kind):
    pq.write_table(
        pa.table({"body": pa.array(["a", None, "b"] * 300, pa.string()).cast(kind)}), tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet", text_column="body") == ["a", "", "b"] * 300


def test_globs_cross_folders_and_each_file_is_read_once_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "deep/skip.md"):
        write(tmp_path / name, name)
    assert read(tmp_path / "**/*.txt", tmp_path / "a.txt", tmp_path / "b*") == [
        "a.txt",
        "b.txt",
        "deep/er/c.txt",
    ]


def test_a_file_whose_name_looks_like_a_glob_is_taken_as_it_is(tmp_path):
    write(tmp_path / "a.txt", "other")
    assert read(write(tmp_path / "[a].txt", "this")) == ["this"]


def test_the_format_can_be_said_where_the_ending_does_not(tmp_path):
    assert read(write(tmp_path / "a.log", '{"text": "one"}'), format="jsonl") == ["one"]
    assert read(tmp_path / "a.log", format="txt") == ['{"text": "one"}']


def test_the_same_content_elsewhere_has_the_same_identity(tmp_path):
    def identity(folder: Path):
        write(folder / "x.txt", "same")
        return locate(TokenizeSpec(corpus=FilesCorpus(paths=(str(folder / "*.txt"),)))).identity()

    assert identity(tmp_path / "one") == identity(tmp_path / "two")


def test_the_same_content_read_in_another_format_has_another_identity(tmp_path):
    spec = TokenizeSpec(corpus=FilesCorpus(paths=(str(tmp_path / "*"),)))
    path = write(tmp_path / "a.txt", '{"text": "one"}')
    before = locate(spec).identity()
    path.rename(tmp_path / "a.jsonl")
    assert locate(spec).identity() != before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pdf", "x", r"none of the endings \.txt, \.jsonl.*corpus\.format"),
        ("a.txt", b"abc\xff", r"a\.txt: byte 3 is not valid UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl: byte 24 is not valid UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b', r"a\.jsonl:2: is not valid JSON"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: is not valid JSON"),
        ("a.jsonl", '["a"]\n', r"a\.jsonl:1: is a JSON list"),
        ("a.jsonl", '{"body": "a", "id": 3}\n', r"a\.jsonl:1: .*'text'; its keys are 'body', 'id'"),
        ("a.jsonl", '{"text": 7}\n', r"a\.jsonl:1: the value of 'text' is a int"),
        ("a.jsonl", '{"text": "a\\ud800"}\n', r"a\.jsonl:1: .*half of a surrogate pair at character 1"),
        ("a.parquet", "PAR1 but not really", r"a\.parquet: is not a sound Parquet file"),
    ],
)
def test_unusable_content_is_named_with_its_place(tmp_path, name, content, said):
    with pytest.raises(SpecError, match=said):
        read(write(tmp_path / name, content))


def test_a_missing_parquet_column_is_answered_with_the_columns_there_are(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(
        SpecError, match=r"no column tokenize\.corpus\.text_column = 'text'; its columns are 'body', 'id'"
    ):
        read(tmp_path / "a.parquet")
    with pytest.raises(SpecError, match="'id' holds int64, not text"):
        read(tmp_path / "a.parquet", text_column="id")


def test_invalid_utf8_inside_parquet_is_named_by_row(tmp_path):
    texts = pa.array([b"fine", b"b\xffd"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(SpecError, match=r"a\.parquet: column 'text', row 1: byte 1 is not valid UTF-8"):
        read(tmp_path / "a.parquet")


def test_a_damaged_parquet_page_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text number {i}" for i in range(2000)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[200:5000] = bytes(4800)
    path.write_bytes(data)
    with pytest.raises(SpecError, match="is not a sound Parquet file"):
        read(path)


@pytest.mark.parametrize("pattern", ["none.txt", "*.jsonl"])
def test_a_pattern_that_matches_nothing_is_refused(tmp_path, pattern):
    write(tmp_path / "a.txt", "x")
    with pytest.raises(SpecError, match=r"corpus\.paths = .*matches no file"):
        read(tmp_path / pattern)


def test_no_path_and_a_folder_are_refused(tmp_path):
    with pytest.raises(SpecError, match="at least one file or glob"):
        read()
    with pytest.raises(SpecError, match="is a folder"):
        read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    with pytest.raises(SpecError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_text("y"), lambda path: path.write_text("longer"), lambda path: path.unlink()],
)
def test_a_file_that_changed_since_it_was_hashed_is_not_read(tmp_path, change):
    path = write(tmp_path / "a.txt", "x")
    spec = TokenizeSpec(corpus=FilesCorpus(paths=(str(path),)))
    manifest = locate(spec)
    change(path)
    with pytest.raises(StageError, match="changed since it was hashed"):
        list(documents(spec.corpus, manifest))


def test_a_file_that_is_written_to_while_it_is_read_is_noticed(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    spec = TokenizeSpec(corpus=FilesCorpus(paths=(str(path),)))
    texts = documents(spec.corpus, locate(spec))
    next(texts)
    with path.open("a") as file:
        file.write('{"text": "c"}\n')
    with pytest.raises(StageError, match="changed while it was read"):
        list(texts)


def test_all_bytes_of_the_files_are_reported_as_read(tmp_path):
    write(tmp_path / "a.txt", "abc")
    write(tmp_path / "b.jsonl", '{"text": "x"}\n\n')
    pq.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "d.parquet")
    spec = TokenizeSpec(corpus=FilesCorpus(paths=(str(tmp_path / "*"),)))
    manifest = locate(spec)
    seen: list[int] = []
    assert len(list(documents(spec.corpus, manifest, on_read=seen.append))) == 1002
    assert sum(seen) == sum(file.num_bytes for file in manifest.files)


def test_memory_does_not_grow_with_a_file_of_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps({"text": f"{number} " * 200}) + "\n" for number in range(20_000))
    assert path.stat().st_size > 20_000_000
    spec = TokenizeSpec(corpus=FilesCorpus(paths=(str(path),)))
    manifest = locate(spec)
    tracemalloc.start()
    assert sum(1 for _ in documents(spec.corpus, manifest)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
