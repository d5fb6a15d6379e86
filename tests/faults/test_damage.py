"""Every kind of stored file, damaged in every way: found on reading, named, made again with the same
content, never served.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schemas.files import FileRef
from schemas.stages import STAGES
from stages.store.housekeeping import find_damage
from stages.store.store import Store, file_refs
from tests.faults.chain import LAST, Chain, up_to
from tests.faults.conftest import STEPS, Undisturbed
from tests.faults.harness import FULL, ROOT, start_chain

pytestmark = pytest.mark.faults

LENGTH = "train.schedule.max_steps=20" if FULL else STEPS
# At the default size, of each stage that takes seconds to make again: the only file that is damaged.
ONLY = {
    "train": "",
    "merge": "merged.safetensors",
    "evaluate": "",
    "audit": "record",
    "publish": "report.html",
}


def flip(path: Path, other: Path) -> None:
    """One bit, as a disk does it: size and times stay as they were."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path, other: Path) -> None:
    path.unlink()


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


DAMAGES = (flip, truncate, delete, empty, swap)
Others = dict[tuple[str, str], Path]


@pytest.fixture(scope="module")
def chain(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A finished run in a store of its own, to be damaged; at the default size a copy of the undisturbed."""
    store = tmp_path_factory.mktemp("one") / "store"
    if not FULL:
        shutil.copytree(undisturbed.store, store)
    made = Chain(store, [LENGTH])
    made.run_all()
    return made


@pytest.fixture(scope="module")
def others(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Others:
    """Files of the same kinds from other runs, sound in themselves: of a longer training, and of another
    text.
    """
    longer = Chain(undisturbed.store, [STEPS])
    text = Chain(tmp_path_factory.mktemp("text"), ["tokenize.corpus.max_documents=7"])
    files = (*stored_files(longer), *stored_files(text, until="tokenize_corpus"))
    return {(stage, kind): path for stage, kind, path in files}


def stored_files(chain: Chain, until: str = LAST) -> Iterator[tuple[str, str, Path]]:
    """(stage, what it is, path) of every kind of stored file, of stages up to `until`."""
    for stage in up_to(until):
        record = chain.run(stage).record
        folder = chain.store.folder(STAGES[stage], record.provenance.key)
        yield stage, "record", folder / "record.json"
        yield stage, "seal", folder / "record.sha256"
        for kind, ref in {
            _kind(ref): ref for ref in file_refs(record.result) if isinstance(ref, FileRef)
        }.items():
            path = chain.store.root / ref.path
            if path.is_relative_to(folder):
                yield stage, kind, path


def _kind(ref: FileRef) -> str:
    """`snapshots/step-00000016.safetensors` and its like are one kind."""
    return "".join("#" if letter.isdigit() else letter for letter in "/".join(ref.path.split("/")[3:]))


def test_every_kind_of_file_damaged_in_every_way(
    chain: Chain, others: Others, caplog: pytest.LogCaptureFixture, figure: Callable[..., None]
) -> None:
    cases = found = named = made_again = 0
    failures = []
    for number, (stage, kind, _) in enumerate(list(stored_files(chain))):
        # Audit and report tell the seconds of training: where it was made again, they lie under another key.
        path = next(path for of, what, path in stored_files(chain, stage) if (of, what) == (stage, kind))
        sound = path.read_bytes()
        for damage in DAMAGES if FULL else (DAMAGES[number % len(DAMAGES)],):
            if not FULL and kind != ONLY.get(stage, kind):
                continue
            if (
                kind == "seal"
                and damage in (truncate, empty, swap)
                and stage in ("train", "merge", "evaluate")
            ):
                continue  # minutes, and the same code as in the other stages
            if damage is swap and others[stage, kind].read_bytes() == sound:
                continue  # the same in every run, as the packed script is
            cases += 1
            damage(path, others[stage, kind])
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                again = chain.run(stage)
            was_found, was_named = (
                not again.cached,
                any(path.name in line and "runs again" in line for line in caplog.messages),
            )
            # A record says when it was made; what it refers to has the same bytes again.
            right = kind in ("record", "seal", "metrics.parquet", "report.html") or path.read_bytes() == sound
            right = right and chain.run(stage).cached
            found, named, made_again = found + was_found, named + was_named, made_again + right
            if not (was_found and was_named and right):
                failures.append((stage, kind, damage.__name__, was_found, was_named, right))
            sound = path.read_bytes()
    assert not list(find_damage(chain.store)), "what was made again is sound"
    told = f"{found} found, {named} named, {made_again} made again and sound {failures or ''}"
    figure(
        "3",
        f"{cases} damages: each kind of stored file × flip, truncate, delete, empty, swap",
        told,
        not failures,
    )


def test_verify_lists_every_damage_and_gives_status_1(
    chain: Chain, others: Others, tmp_path: Path, figure: Callable[..., None]
) -> None:
    files = list(stored_files(chain))
    cases, missed = 0, []
    for damage in DAMAGES if FULL else (flip,):
        store = tmp_path / damage.__name__
        for stage, kind, path in files:
            if damage is swap and others[stage, kind].read_bytes() == path.read_bytes():
                continue
            shutil.copytree(chain.store.root, store)
            damage(store / path.relative_to(chain.store.root), others[stage, kind])
            cases += 1
            problems = list(find_damage(Store(store)))
            # A broken seal is told as its record.
            if not any(path.stem in problem for problem in problems):
                missed.append((stage, kind, damage.__name__, problems))
            shutil.rmtree(store)
    shutil.copytree(chain.store.root, tmp_path / "bad")
    flip(tmp_path / "bad" / files[2][2].relative_to(chain.store.root), Path())
    command = [sys.executable, "-m", "flows.cli", "verify", "--json", "--store"]
    sound, bad = (
        subprocess.run([*command, str(root)], cwd=ROOT, capture_output=True, text=True)
        for root in (chain.store.root, tmp_path / "bad")
    )
    listed = json.loads(bad.stdout)["damage"]
    met = (
        not missed
        and sound.returncode == 0
        and bad.returncode == 1
        and len(listed) == 1
        and files[2][2].name in listed[0]
    )
    figure(
        "8",
        f"`fairway verify` over {cases} damaged stores",
        f"{cases - len(missed)} listed; status 0 and 1 {missed or ''}",
        met,
    )


def test_a_stage_by_hand_refuses_a_damaged_input_without_a_stack_trace(
    chain: Chain, tmp_path: Path, figure: Callable[..., None]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(chain.store.root, store)
    record = next(store.glob("stages/merge/*/record.json"))
    (tmp_path / "spec.json").write_text('{"method": "round_to_nearest"}')
    tokenized = next(store.glob("stages/tokenize_corpus/*/record.json"))
    command = [sys.executable, "-m", "stages", "quantize", "--spec", str(tmp_path / "spec.json")]
    command += ["--input", f"merged={record}", "--input", f"tokenized={tokenized}"]
    answers = []
    for victim in (record.parent / "merged.safetensors", record):
        flip(victim, victim)
        answers.append(
            subprocess.run([*command, "--store", str(store)], cwd=ROOT, capture_output=True, text=True)
        )
    named = "merged.safetensors is damaged" in answers[0].stderr and "record.json" in answers[1].stderr
    clean = not any("Traceback" in answer.stderr for answer in answers) and [
        answer.returncode for answer in answers
    ] == [1, 2]
    figure(
        "3",
        "a stage by hand, given a damaged file and a damaged record",
        "refused, named, no stack trace"
        if named and clean
        else str([(answer.returncode, answer.stderr[-300:]) for answer in answers]),
        named and clean,
    )


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[..., None]
) -> None:
    expected = undisturbed.folder("train") / "last.safetensors"
    started = start_chain(tmp_path / "killed", tmp_path, STEPS)
    assert started.wait_for(lambda: len(_checkpoints(tmp_path / "killed")) >= 2)
    started.end()
    steps = [int(path.stem.removeprefix("step-")) for path in _checkpoints(tmp_path / "killed")]
    wrong, cases = [], 0
    for suffix in (".safetensors", ".json") if FULL else (".safetensors",):
        for damage in DAMAGES if FULL else (flip,):
            store = tmp_path / f"{damage.__name__}{suffix}"
            shutil.copytree(tmp_path / "killed", store)
            before, newest = _checkpoints(store)[-2:]
            damage(newest.with_suffix(suffix), before.with_suffix(suffix))
            chain = Chain(store, [STEPS])
            chain.run("tokenize_corpus")
            trained = chain.run("train").record.result
            cases += 1
            if (
                store / trained.last.weights.path
            ).read_bytes() != expected.read_bytes() or trained.timings.resumed_from_steps[0] != steps[-2]:
                wrong.append((damage.__name__, suffix, trained.timings.resumed_from_steps))
    told = f"{cases - len(wrong)} went on from the one before, to the same weights {wrong or ''}"
    figure("3", f"newest training checkpoint damaged, {cases} ways", told, not wrong)


def _checkpoints(store: Path) -> list[Path]:
    return sorted(store.glob("work/train/*/checkpoints/*.json"))
