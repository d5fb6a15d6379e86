"""A real S3 server for tests: Ceph's radosgw over one monitor and one OSD in memory, on the loopback
interface.

    apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr

moto would be simpler, but two of eight concurrent creates succeed on it.
"""

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store

from tests.ports import free_port

PROGRAMS = ("ceph-mon", "ceph-osd", "ceph-mgr", "radosgw", "radosgw-admin", "monmaptool", "ceph")
BUCKET = "fairway"
ACCESS_KEY, SECRET_KEY = "fairwaytestaccess", "fairwaytestsecretvalue"
_SECONDS = 120.0


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which obstore reaches the server and its bucket `fairway`.

    `folder` must have a short path, because sockets lie in it. Raises RuntimeError with the last log lines
    when the server does not start.
    """
    monitor, gateway, identity = free_port(), free_port(), str(uuid.uuid4())
    config = folder / "ceph.conf"
    config.write_text(_CONFIG.format(folder=folder, fsid=identity, monitor=monitor, gateway=gateway))
    base = ["-c", str(config)]
    _do(
        "monmaptool",
        "--create",
        "--addv",
        "a",
        f"[v1:127.0.0.1:{monitor}]",
        "--fsid",
        identity,
        f"{folder}/map",
    )
    _do("ceph-mon", *base, "--mkfs", "-i", "a", "--monmap", f"{folder}/map", "--mon-data", f"{folder}/mon")
    started = list[subprocess.Popen]()
    try:
        started.append(_start(folder, "ceph-mon", *base, "-f", "-i", "a", "--mon-data", f"{folder}/mon"))
        _do("ceph", *base, "osd", "new", identity)
        (folder / "osd").mkdir()
        osd = ["-i", "0", "--osd-data", f"{folder}/osd"]
        _do("ceph-osd", *base, *osd, "--mkfs", "--osd-uuid", identity)
        started.append(_start(folder, "ceph-osd", *base, *osd, "-f"))
        started.append(_start(folder, "ceph-mgr", *base, "-f", "-i", "a"))
        name = ["-n", "client.rgw"]
        started.append(_start(folder, "radosgw", *base, *name, "-f"))
        keys = ["--access-key", ACCESS_KEY, "--secret", SECRET_KEY]
        _do("radosgw-admin", *base, *name, "user", "create", "--uid", "t", "--display-name", "t", *keys)
        endpoint = f"http://127.0.0.1:{gateway}"
        _wait_for(endpoint, folder)
        settings = {
            "AWS_ENDPOINT": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }
        bucket = S3Store(
            BUCKET,
            endpoint=endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        address = obstore.sign(bucket, "PUT", "", timedelta(hours=1))
        urllib.request.urlopen(urllib.request.Request(address, b"", method="PUT"), timeout=30).close()
        yield settings
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def _do(*command: str) -> None:
    made = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env=_environment())
    if made.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {made.returncode}: {made.stderr[-2000:]}")


def _start(folder: Path, *command: str) -> subprocess.Popen:
    with (folder / f"{command[0]}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=_environment())


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CEPH_")}


def _wait_for(endpoint: str, folder: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError((folder / "radosgw.log").read_text(errors="replace")[-2000:])


_CONFIG = """\
[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{monitor}]
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file =
crash dir = {folder}/crash
osd objectstore = memstore
memstore device bytes = 2147483648
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon max pg per osd = 1000
osd max object name len = 256
osd max object namespace len = 64
rgw frontends = beast endpoint=127.0.0.1:{gateway}
mgr data = {folder}/mgr
[mgr]
mgr modules =
"""
