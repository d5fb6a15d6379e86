"""A remote store keeps the first of two creates, serves nothing damaged, and says no secret.

On a folder and on a small HTTP server; tests/faults/test_object_storage.py has a real S3 server.
"""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from schemas.errors import SpecError
from schemas.files import FileRef
from schemas.runtime import RunOptions
from stages.store.remote import DamagedObjectError, Remote, RemoteError, blob_name, open_remote
from stages.store.store import Store, open_store, open_store_at

SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared folder"


@pytest.fixture
def remote(folder: Path) -> Remote:
    return open_remote(folder.as_uri())


def reference(content: bytes) -> FileRef:
    return FileRef(path="stages/x", num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def test_the_first_of_two_creates_stays(remote: Remote) -> None:
    assert remote.create("stages/merge/key", b"first")
    assert not remote.create("stages/merge/key", b"second")
    assert remote.read("stages/merge/key") == b"first"
    remote.replace("stages/merge/key", b"third")
    assert remote.read("stages/merge/key") == b"third"
    assert remote.read("stages/merge/other") is None


def test_opening_leaves_nothing(remote: Remote, folder: Path) -> None:
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_damaged_document_is_never_served(remote: Remote, folder: Path) -> None:
    remote.create("runs/one", b'{"bpb": 1.5}')
    path = folder / "runs" / "one"
    path.write_bytes(path.read_bytes().replace(b"1.5", b"1.4"))
    with pytest.raises(DamagedObjectError, match=r"file:.*: runs/one is damaged"):
        remote.read("runs/one")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: b"X" + content[1:], "its sha256 is not"),
        (lambda content: content[:-1], "9 bytes instead"),
    ],
)
def test_a_damaged_file_is_named_and_taken_away(
    remote: Remote, folder: Path, tmp_path: Path, damage: Any, why: str
) -> None:
    content = b"0123456789"
    ref, source, target = reference(content), tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    remote.upload_blob(source, ref)
    blob = folder / blob_name(ref.sha256)
    blob.write_bytes(damage(content))
    with pytest.raises(DamagedObjectError, match=why):
        remote.download(blob_name(ref.sha256), ref, target)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["source"]
    assert not remote.has_blob(ref)
    remote.upload_blob(source, ref)
    remote.download(blob_name(ref.sha256), ref, target)
    assert target.read_bytes() == content


def test_a_file_comes_back_in_pieces(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.store.remote._PIECE_BYTES", 7)
    for content in (b"", b"seven..", b"twenty-two bytes here."):
        (tmp_path / "source").write_bytes(content)
        ref = reference(content)
        remote.upload_blob(tmp_path / "source", ref)
        remote.download(blob_name(ref.sha256), ref, tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == content


def test_a_file_that_is_not_there_leaves_nothing(remote: Remote, tmp_path: Path) -> None:
    ref = reference(b"never uploaded")
    with pytest.raises(FileNotFoundError):
        remote.download(blob_name(ref.sha256), ref, tmp_path / "target")
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_server_that_ignores_create_only_writes_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *args, mode=None, **options: real(*args, **options))
    with pytest.raises(SpecError, match=r"ignores create-only writes \(If-None-Match: \*\).* Use a server"):
        open_remote((folder / "careless").as_uri())


@pytest.mark.parametrize(
    "address",
    [
        f"s3://key:{SECRET}@bucket/folder",
        f"s3://bucket/folder?secret={SECRET}",
        f"az://container/folder#{SECRET}",
        f"http://{SECRET}/folder",
        f"file://{SECRET}/folder",
        "file:///",
        "s3://",
        "bucket/folder",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(address: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="must be s3://BUCKET/FOLDER") as caught:
        open_store_at(tmp_path / "store", address)
    asked = ["run", "--preset", "smoke", "--store", str(tmp_path / "store"), "--remote", address]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert SECRET not in str(caught.value) + result.output
    assert not (tmp_path / "store").exists()


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """An S3 server that answers every request with 403 and repeats the client's secrets in its answer."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            said = f"<Error>{SECRET} {self.headers['authorization']}</Error>".encode()
            self.send_response(403)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def refused(refusing_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AWS_ENDPOINT", refusing_server),
        ("AWS_ACCESS_KEY_ID", "an-access-key-id"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("refused")
def test_a_server_that_refuses_is_named_without_a_secret(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"remote = s3://bucket/folder: cannot be used .*403") as caught:
        open_store_at(tmp_path / "store", "s3://bucket/folder")
    assert "Check the address and the credentials in the environment" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "an-access-key-id" not in str(caught.value)
    assert caught.value.__suppress_context__  # a stack trace would show the server's own words


@pytest.mark.usefixtures("refused")
def test_a_server_that_fails_later_is_worth_another_try_and_named_without_a_secret() -> None:
    from obstore.store import from_url

    bucket = from_url("s3://bucket/folder", client_options={"allow_http": True})
    with pytest.raises(RemoteError, match=r"remote = s3://bucket/folder: runs/one: .*403") as caught:
        Remote(bucket, "s3://bucket/folder").replace("runs/one", b"report")
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


def test_without_obstore_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "stages.store.remote")
    with pytest.raises(
        SpecError, match=r"needs the package obstore\. Install it: .* -m pip install 'obstore"
    ):
        open_store_at(tmp_path / "store", (tmp_path / "shared").as_uri())


def test_without_a_remote_nothing_of_it_is_imported(tmp_path: Path) -> None:
    code = (
        "import json, sys, flows.pipeline, stages.execution.command_line\n"
        "from schemas.runtime import RunOptions\nfrom stages.store.store import open_store\n"
        "open_store(RunOptions(store=sys.argv[1]))\nprint(json.dumps(list(sys.modules)))"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    imported = set(json.loads(made.stdout.splitlines()[-1]))
    assert "stages.store.store" in imported
    assert (
        not {"obstore", "stages.store.remote", "stages.store.shared", "stages.store.checkpoints"} & imported
    )


def test_no_address_is_no_remote(tmp_path: Path) -> None:
    for remote in (None, ""):
        assert type(open_store(RunOptions(store=str(tmp_path), remote=remote))) is Store
