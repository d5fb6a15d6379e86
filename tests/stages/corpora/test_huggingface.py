"""The Hugging Face source, through the real client, against a small hub of its own on this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session

from schemas.errors import SpecError, StageError
from schemas.tokenize_corpus import HuggingFaceCorpus, TokenizeSpec
from stages.corpora import documents, huggingface, locate
from stages.corpora.huggingface import split_files
from stages.store.hashing import FileHashes

COMMIT = "c0ffee" * 6 + "abcd"


class Hub(ThreadingHTTPServer):
    """Serves a folder as the dataset owner/corpus: its description, and its files at COMMIT."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.folder = folder
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def description(self) -> dict:
        siblings = []
        for path in sorted(self.folder.rglob("*.*")):
            sibling: dict = {
                "rfilename": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size,
                "blobId": "0" * 40,
            }
            if path.suffix == ".parquet":
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                sibling["lfs"] = {"size": path.stat().st_size, "sha256": digest, "pointerSize": 130}
            siblings.append(sibling)
        return {
            "id": "owner/corpus",
            "sha": COMMIT,
            "siblings": siblings,
            "tags": [],
            "private": False,
            "downloads": 0,
            "likes": 0,
        }


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def _answer(self, send_body: bool) -> None:
        path = self.path.split("?")[0]
        if path in (
            "/api/datasets/owner/corpus/revision/main",
            f"/api/datasets/owner/corpus/revision/{COMMIT}",
        ):
            self._send(
                json.dumps(self.server.description()).encode(),
                {"Content-Type": "application/json"},
                send_body,
            )
        elif path.startswith("/api/datasets/owner/corpus/revision/"):
            self._send(b"", {"X-Error-Code": "RevisionNotFound"}, send_body, status=404)
        elif path.startswith(prefix := f"/datasets/owner/corpus/resolve/{COMMIT}/"):
            data = (self.server.folder / path.removeprefix(prefix)).read_bytes()
            if send_body:
                self.server.downloads.append(path.removeprefix(prefix))
            self._send(
                data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, send_body
            )
        elif path == "/api/datasets/owner/gated/revision/main":
            self._send(b"", {"X-Error-Code": "GatedRepo"}, send_body, status=403)
        else:
            self._send(b"", {"X-Error-Code": "RepoNotFound"}, send_body, status=404)

    def _send(self, data: bytes, headers: dict[str, str], send_body: bool, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# corpus")
    pq.write_table(pa.table({"text": ["first", "second"]}), folder / "data/train-00000-of-00001.parquet")
    (folder / "data/train-extra.jsonl").write_text('{"text": "third"}\n')
    (folder / "data/validation.jsonl").write_text('{"text": "held out"}\n')
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface, "_hub", lambda: HfApi(endpoint=server.url, token=False))
    yield server
    server.shutdown()
    server.server_close()


def spec_of(**corpus) -> TokenizeSpec:
    return TokenizeSpec(corpus=HuggingFaceCorpus(**({"dataset": "owner/corpus"} | corpus)))


def test_a_branch_is_resolved_to_a_commit_before_anything_large_is_downloaded(hub):
    manifest = locate(spec_of())
    assert manifest.revision == COMMIT
    assert [file.path for file in manifest.files] == [
        "data/train-00000-of-00001.parquet",
        "data/train-extra.jsonl",
    ]
    assert [file.sha256 for file in manifest.files] == [
        hashlib.sha256((hub.folder / file.path).read_bytes()).hexdigest() for file in manifest.files
    ]
    assert hub.downloads == ["data/train-extra.jsonl"]  # the hub knows digests of large files only


def test_the_split_is_read_file_by_file_and_downloaded_once(hub):
    spec = spec_of()
    manifest = locate(spec)
    assert list(documents(spec.corpus, manifest)) == ["first", "second", "third"]
    assert list(documents(spec.corpus, manifest)) == ["first", "second", "third"]
    assert sorted(hub.downloads) == ["data/train-00000-of-00001.parquet", "data/train-extra.jsonl"]
    other = spec_of(split="validation")
    assert list(documents(other.corpus, locate(other))) == ["held out"]


def test_a_commit_and_a_branch_that_points_to_it_have_one_identity(hub):
    assert locate(spec_of()).identity() == locate(spec_of(revision=COMMIT)).identity()


def test_a_file_damaged_in_the_cache_is_downloaded_again(hub, caplog):
    spec = spec_of()
    manifest = locate(spec)
    local = Path(huggingface.fetch(spec.corpus, manifest, manifest.files[0], FileHashes(None)).path)
    local.write_bytes(local.read_bytes()[:-1] + b"?")
    assert list(documents(spec.corpus, manifest)) == ["first", "second", "third"]
    assert "is damaged" in caplog.text


def test_a_file_that_the_hub_changed_under_its_commit_is_not_read(hub):
    spec = spec_of()
    manifest = locate(spec)
    path = hub.folder / manifest.files[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StageError, match="changed since it was hashed"):
        list(documents(spec.corpus, manifest))


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ({"dataset": ""}, "give the id"),
        ({"dataset": "owner/absent"}, "no such dataset"),
        ({"dataset": "a/b/c/d"}, "is no repository id"),
        ({"dataset": "owner/gated"}, "grants access on request"),
        ({"revision": "v9"}, "tokenize.corpus.revision = v9: owner/corpus has no such branch"),
        ({"split": "test"}, "has no .* file of that split; its files are README.md, data/train"),
        ({"folder": "sample"}, "under tokenize.corpus.folder = 'sample'"),
    ],
)
def test_what_the_hub_does_not_have_is_refused_with_a_remedy(hub, corpus, said):
    with pytest.raises(SpecError, match=said):
        locate(spec_of(**corpus))


@pytest.fixture
def cut_off(monkeypatch):
    """Call it, and the hub is gone; gives the seconds that were waited between tries."""
    waits = []
    monkeypatch.setattr(huggingface.time, "sleep", waits.append)

    def cut():
        monkeypatch.setattr(huggingface, "_hub", lambda: HfApi(endpoint="http://127.0.0.1:9", token=False))
        return waits

    return cut


def test_without_a_network_it_tries_again_and_then_says_so(cut_off):
    waits = cut_off()
    with pytest.raises(ConnectionError, match=r"cannot be reached .*use tokenize\.corpus\.kind=files"):
        locate(spec_of())
    assert waits == [2.0, 4.0]


def test_a_hub_that_answers_again_is_no_error(hub, cut_off, monkeypatch):
    cut_off()

    def answers_again(seconds):
        monkeypatch.setattr(huggingface, "_hub", lambda: HfApi(endpoint=hub.url, token=False))

    monkeypatch.setattr(huggingface.time, "sleep", answers_again)
    assert locate(spec_of()).revision == COMMIT


def test_what_the_hub_said_is_known_without_a_network(hub, tmp_path, cut_off, caplog):
    asked = locate(spec_of(), memory=tmp_path / "memory")
    cut_off()
    assert locate(spec_of(), memory=tmp_path / "memory") == asked
    assert "cannot be reached" in caplog.text
    assert f"using {COMMIT}" in caplog.text
    other = spec_of(split="validation")
    with pytest.raises(
        ConnectionError, match=r"data/validation\.jsonl is not on this machine and cannot be downloaded"
    ):
        locate(other, memory=tmp_path / "memory")


def test_a_commit_is_asked_for_once(hub, tmp_path, cut_off, caplog):
    asked = locate(spec_of(revision=COMMIT), memory=tmp_path)
    waits = cut_off()
    assert locate(spec_of(revision=COMMIT), memory=tmp_path) == asked
    assert waits == []
    assert caplog.text == ""


def test_a_branch_that_moved_is_followed(hub, tmp_path):
    locate(spec_of(), memory=tmp_path)
    (hub.folder / "data/train-more.jsonl").write_text('{"text": "fourth"}\n')
    assert len(locate(spec_of(), memory=tmp_path).files) == 3


def test_a_damaged_memory_is_as_none(hub, tmp_path, caplog):
    asked = locate(spec_of(revision=COMMIT), memory=tmp_path)
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text()[:-9])
    assert locate(spec_of(revision=COMMIT), memory=tmp_path) == asked
    assert "asking the hub" in caplog.text


def test_in_offline_mode_it_says_so(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    try:
        with pytest.raises(ConnectionError, match="cannot be reached"):
            locate(spec_of())
    finally:
        close_session()


@pytest.mark.parametrize(
    ("names", "split", "folder", "chosen"),
    [
        (["train.parquet", "training_notes.txt", "test.parquet"], "train", "", ["train.parquet"]),
        (["en/train/0.parquet", "en/test/0.parquet"], "test", "", ["en/test/0.parquet"]),
        (
            ["a/0.parquet", "a/1.parquet", "b.jsonl", "x.py"],
            "train",
            "",
            ["a/0.parquet", "a/1.parquet", "b.jsonl"],
        ),
        (["a/0.parquet", "a/1.parquet"], "validation", "", []),
        (["a.jsonl.gz", "b.JSONL.zst", "c.csv.gz"], "train", "", ["a.jsonl.gz", "b.JSONL.zst"]),
        (["a.jsonl", "a.jsonl.gz"], "train", "", ["a.jsonl"]),
        (
            ["en/c4-train.0.json.gz", "en/c4-validation.0.json.gz", "dataset_infos.json"],
            "train",
            "",
            ["en/c4-train.0.json.gz"],
        ),
        (["train.parquet", "train.json"], "train", "", ["train.parquet"]),
        (["dataset_infos.json", ".cache/x.json", "config.json"], "train", "", []),
        (
            ["sample/10BT/0.parquet", "sample/100BT/0.parquet"],
            "train",
            "sample/10BT/",
            ["sample/10BT/0.parquet"],
        ),
    ],
)
def test_a_split_is_found_by_folder_or_file_name(names, split, folder, chosen):
    assert split_files(names, split, folder) == chosen
