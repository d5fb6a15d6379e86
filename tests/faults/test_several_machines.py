"""Machines that share a remote store: one dies with its disk, two make the same at once, an upload is killed.

A machine is a store of its own. On a folder, and (slow) on a real S3 server, see tests/faults/radosgw.py.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Barrier

import obstore
import psutil
import pytest

from schemas.files import FileRef
from schemas.stages import STAGES
from stages.store.checkpoints import CheckpointFiles
from stages.store.hashing import FileHashes
from stages.store.remote import Remote, blob_name, open_remote
from stages.store.remote_housekeeping import find_damaged_objects
from stages.store.shared import SharedStore
from stages.store.workspace import DamagedFileError
from tests.faults.chain import CHECKPOINT_SECONDS, up_to
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import FULL, LAST, ROOT, finish_chain, made, start_chain
from tests.faults.radosgw import ACCESS_KEY, BUCKET, SECRET_KEY, missing_programs, s3_server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

LINE = "10"
WRITING_AND_SENDING_SECONDS = 1.0
LARGE_BYTES = 200 * 10**6
SILENT_SECONDS = 20.0


@dataclass(frozen=True)
class Shared:
    """A remote store, how it is called in figures, and the environment in which programs reach it."""

    what: str
    environment: dict[str, str]

    @property
    def remote(self) -> Remote:
        return open_remote(self.environment["FAIRWAY_REMOTE"])


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, str]]:
    if missing := missing_programs():
        pytest.skip(f"no {missing[0]}; tests/faults/radosgw.py says what to install")
    with tempfile.TemporaryDirectory(prefix="rgw-") as folder, s3_server(Path(folder)) as settings:
        yield settings


@pytest.fixture
def s3(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Shared:
    environment = {**server, "FAIRWAY_REMOTE": f"s3://{BUCKET}/{uuid.uuid4().hex}"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Shared("an S3 server (radosgw)", environment)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Shared:
    if request.param == "s3":
        found: Shared = request.getfixturevalue("s3")
        return found
    return Shared("a shared folder", {"FAIRWAY_REMOTE": (tmp_path / "shared").as_uri()})


def newest_checkpoint(remote: Remote) -> CheckpointFiles | None:
    names = [item.name for item in remote.objects("work/") if item.name.endswith("/manifest")]
    contents = [content for name in names if (content := remote.read(name)) is not None]
    found = [CheckpointFiles.model_validate_json(content) for content in contents]
    return max(found, key=lambda files: files.step, default=None)


def training_seconds(store: Path) -> dict[int, float]:
    """Step -> seconds of training when it was done, of every step that was made."""
    [metrics] = store.glob("work/train/*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().split("\n")[:-1]]
    return {row["step"]: row["seconds"] for row in rows}


def test_a_machine_dies_with_its_disk(
    undisturbed: Undisturbed, shared: Shared, tmp_path: Path, figure: Callable[..., None]
) -> None:
    first, second, third = (tmp_path / name for name in ("first machine", "second machine", "third machine"))
    # `tests/flows` serves every stage on another machine; here, the blob is enough.
    until = LAST if FULL else "package"
    run = start_chain(first, tmp_path, STEPS, until=until, **shared.environment)
    assert run.wait_for(lambda: newest_checkpoint(shared.remote))
    time.sleep(random.Random(5).uniform(0.5, 1.5))
    run.kill_at_once()
    checkpoint = newest_checkpoint(shared.remote)
    assert checkpoint is not None
    step, seconds = int(checkpoint.step.removeprefix("step-")), training_seconds(first)
    shutil.rmtree(first)
    lost = max(seconds.values()) - seconds[step]
    done = f"training killed, its disk removed, a remote store on {shared.what}"
    told = f"{lost:.2f} s of training; a checkpoint every {CHECKPOINT_SECONDS} s, its writing and its sending"
    figure(LINE, f"{done}: what it cost", told, lost <= CHECKPOINT_SECONDS + WRITING_AND_SENDING_SECONDS)

    last = finish_chain(second, tmp_path, STEPS, until=until, **shared.environment)[-1]
    same = last["sha256"] == undisturbed.sha256
    told = f"went on from step {step} to {'the same bytes' if same else 'OTHER BYTES'}"
    figure(LINE, f"{done}: a machine with an empty disk", told, same and last["resumed"] == [step])
    assert shared.remote.objects("work/") == []

    started = time.perf_counter()
    served = finish_chain(third, tmp_path, STEPS, until=until, **shared.environment)
    cached = [event["stage"] for event in served if event["event"] == "cached"]
    told = f"{len(cached)} of {len(up_to(until))} stages served, {time.perf_counter() - started:.1f} s"
    figure(LINE, f"the finished run on another empty machine, {shared.what}", told, cached == up_to(until))
    assert list(find_damaged_objects(shared.remote)) == []


@pytest.mark.slow
def test_two_machines_make_the_same_at_once(
    undisturbed: Undisturbed, s3: Shared, tmp_path: Path, figure: Callable[..., None]
) -> None:
    stores = [tmp_path / "one", tmp_path / "other"]
    both = [start_chain(store, tmp_path, STEPS, **s3.environment) for store in stores]
    statuses = [run.process.wait(300) for run in both]
    assert statuses == [0, 0], [run.text()[-2000:] for run in both]
    same = {run.events()[-1]["sha256"] for run in both} == {undisturbed.sha256}
    records = [
        {path.relative_to(store): path.read_bytes() for path in store.glob("stages/*/*/record.json")}
        for store in stores
    ]
    equal = records[0] == records[1] and len(records[0]) == len(STAGES)
    told = f"blobs {'identical' if same else 'differ'}; all {len(STAGES)} records equal: {equal}"
    figure(LINE, f"two machines make the same run at once, {s3.what}", told, same and equal)
    _nothing_secret(s3, [*stores, *tmp_path.glob("*.err"), *tmp_path.glob("*.out")])


def _nothing_secret(s3: Shared, places: list[Path]) -> None:
    """Neither key lies in a store, a log, or an object."""
    files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    contents = [path.read_bytes() for path in files if path.is_file()]
    far = obstore.store.from_url(s3.environment["FAIRWAY_REMOTE"], client_options={"allow_http": True})
    names = [item["path"] for page in obstore.list(far) for item in page]
    contents += [bytes(obstore.get(far, name).bytes()) for name in names]
    assert len(contents) > 50
    assert not [text for text in contents if ACCESS_KEY.encode() in text or SECRET_KEY.encode() in text]


@pytest.mark.slow
def test_of_many_creators_at_once_one_wins(s3: Shared, figure: Callable[..., None]) -> None:
    rounds, at_once = 20, 8
    winners, barrier, remote = [], Barrier(at_once), s3.remote

    def create(name: str, creator: int) -> bool:
        barrier.wait()
        return remote.create(name, str(creator).encode())

    with ThreadPoolExecutor(at_once) as pool:
        for number in range(rounds):
            name = f"stages/x/{number}"
            won = list(pool.map(partial(create, name), range(at_once)))
            assert remote.read(name) == str(won.index(True)).encode()
            winners.append(sum(won))
    told = f"{min(winners)} to {max(winners)} winners a round"
    figure(LINE, f"{at_once} creators of one record, {rounds} rounds, {s3.what}", told, set(winners) == {1})


@pytest.mark.slow
def test_an_upload_that_is_killed_leaves_nothing(
    s3: Shared, tmp_path: Path, figure: Callable[..., None]
) -> None:
    large = tmp_path / "large"
    large.write_bytes(random.Random(0).randbytes(LARGE_BYTES))
    ref = FileRef(path="stages/x", num_bytes=LARGE_BYTES, sha256=FileHashes(None).sha256(large))
    started = time.perf_counter()
    s3.remote.upload(large, "blobs/xx/whole", LARGE_BYTES)
    seconds = time.perf_counter() - started
    s3.remote.delete(["blobs/xx/whole"])
    code = (
        "import sys\nfrom pathlib import Path\nfrom stages.store.remote import open_remote\n"
        "remote = open_remote(sys.argv[1])\nprint('begins', flush=True)\n"
        "remote.upload(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))\nprint('ended', flush=True)"
    )
    url, name = s3.environment["FAIRWAY_REMOTE"], blob_name(ref.sha256)

    def killed_after(pause: float) -> bool:
        """Whether the kill came before the server had everything. Otherwise the object is whole."""
        child = subprocess.Popen(
            [sys.executable, "-c", code, url, str(large), name, str(LARGE_BYTES)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "begins\n"
        time.sleep(pause)
        child.kill()
        ending = child.wait(30), child.stdout.read()
        assert ending in ((-signal.SIGKILL, ""), (-signal.SIGKILL, "ended\n"), (0, "ended\n"))
        if ending[1] == "" and not s3.remote.has_blob(ref):
            return True
        s3.remote.download(name, ref, tmp_path / "whole")
        assert FileHashes(None).sha256(tmp_path / "whole") == ref.sha256
        return False

    for share in (0.2, 0.5, 0.8):
        pause = share * seconds
        while not killed_after(pause):
            s3.remote.delete([name])
            pause /= 2
    visible = s3.remote.objects("blobs/")
    done = f"an upload of {LARGE_BYTES // 10**6} MB killed three times, {s3.what}"
    figure(LINE, done, f"{len(visible)} objects visible", visible == [])
    s3.remote.upload_blob(large, ref)
    started = time.perf_counter()
    s3.remote.download(name, ref, tmp_path / "back")
    back = time.perf_counter() - started
    speed = f"uploaded at {LARGE_BYTES / seconds / 1e6:.0f} MB/s, fetched and checked at"
    told = f"{speed} {LARGE_BYTES / back / 1e6:.0f} MB/s"
    sound = FileHashes(None).sha256(tmp_path / "back") == ref.sha256
    figure(LINE, f"the same upload, undisturbed, {s3.what}", told, sound)


@pytest.mark.slow
def test_the_server_answers_nothing_while_a_machine_trains(
    undisturbed: Undisturbed, s3: Shared, tmp_path: Path, figure: Callable[..., None]
) -> None:
    [gateway] = [child for child in psutil.Process().children() if child.name() == "radosgw"]
    run = start_chain(tmp_path / "store", tmp_path, STEPS, **s3.environment)
    assert run.wait_for(lambda: newest_checkpoint(s3.remote))
    gateway.suspend()  # connections open, and nothing comes back
    try:
        time.sleep(SILENT_SECONDS)
    finally:
        gateway.resume()
    status = run.process.wait(300)
    assert status == 0, run.text()[-3000:]
    same = run.events()[-1]["sha256"] == undisturbed.sha256
    resumed = run.events()[-1]["resumed"]
    told = f"the run ended, the same bytes: {same}; training was begun again {len(resumed)} times"
    done = f"{s3.what} answers nothing for {SILENT_SECONDS:.0f} s while a machine trains"
    figure(LINE, done, told, same and not resumed and not list(find_damaged_objects(s3.remote)))


@pytest.mark.slow
def test_one_flipped_bit_is_found_and_made_again(
    s3: Shared, tmp_path: Path, figure: Callable[..., None]
) -> None:
    short = "train.schedule.max_steps=20"
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    sha256 = finish_chain(first, tmp_path, short, **s3.environment)[-1]["sha256"]
    name = blob_name(sha256)
    far = obstore.store.from_url(s3.environment["FAIRWAY_REMOTE"], client_options={"allow_http": True})
    content = bytearray(obstore.get(far, name).bytes())
    content[len(content) // 2] ^= 1
    obstore.put(far, name, bytes(content))
    [package] = first.glob("stages/package/*/record.json")
    blob = FileRef.model_validate(json.loads(package.read_text())["result"]["blob"])
    with pytest.raises(DamagedFileError, match=f"{name} is damaged"):
        SharedStore(second, s3.remote).fetch(blob)
    nothing = not list(second.rglob("*.fwz"))
    shutil.rmtree(first)
    again = finish_chain(third, tmp_path, short, **s3.environment)
    told = f"found, named, nothing of it kept; made again: {' and '.join(made(again))}"
    met = nothing and again[-1]["sha256"] == sha256 and not list(find_damaged_objects(s3.remote))
    figure(LINE, f"one bit of a stored model flipped, {s3.what}", told, met)
