"""Notes of a run are kept whole, in one store and on all machines of a remote one."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.errors import SpecError
from schemas.notes import RunNotes
from stages.store.notes import NOTES_NAME, load_notes, notes_of, pinned_runs
from stages.store.remote import open_remote
from stages.store.remote_housekeeping import find_damaged_objects, find_unneeded_objects
from stages.store.shared import SharedStore
from stages.store.store import Store

RUN = "aaaa-1"
Machine = Callable[[str], SharedStore]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A store by its name; all of them share one remote, which knows the run."""
    remote = open_remote((tmp_path / "shared").as_uri())
    remote.replace(f"runs/{RUN}", b'{"created_at": "2026-01-01", "stages": []}')
    return lambda name: SharedStore(tmp_path / name, remote)


def test_notes_are_read_back_as_they_were_given(store: Store) -> None:
    assert load_notes(store.root, RUN) == RunNotes()
    store.change_notes(RUN, lambda notes: notes.with_note("größer, 模型", "2026-01-01"))
    store.change_notes(RUN, lambda notes: notes.with_tags(("b", "a", "b")))
    store.change_notes(RUN, lambda notes: notes.derive(pinned=True))
    notes = load_notes(store.root, RUN)
    assert [note.text for note in notes.notes] == ["größer, 模型"]
    assert (notes.tags, notes.pinned) == (("b", "a"), True)
    assert notes_of(store.root, [RUN, "other"]) == {RUN: notes, "other": RunNotes()}


def test_what_is_not_there_cannot_be_taken_away() -> None:
    notes = RunNotes().with_note("one", "").with_note("two", "").with_tags(("a",))
    assert [note.text for note in notes.without_note(1).notes] == ["two"]
    for number in (0, 3, -1):
        with pytest.raises(SpecError, match=rf"--remove = {number}: no such note; the run has 2"):
            notes.without_note(number)
    with pytest.raises(SpecError, match="TAG = b: the run has no such tag; it has a"):
        notes.without_tags(("a", "b"))
    assert notes.without_tags(("a",)).tags == ()


@pytest.mark.parametrize("tag", ["", " ", "two words", "a,b", "-a", "x" * 65, "a\n"])
def test_a_tag_is_one_word(tag: str) -> None:
    with pytest.raises(ValidationError):
        RunNotes().with_tags((tag,))


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text.replace("true", "null")])
def test_damaged_notes_are_named_and_count_as_a_pin(
    damage: Callable[[str], str], store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.change_notes(RUN, lambda notes: notes.derive(pinned=True))
    path = store.root / "runs" / RUN / NOTES_NAME
    path.write_text(damage(path.read_text()))
    with pytest.raises(SpecError, match=rf"{NOTES_NAME}: damaged"):
        store.change_notes(RUN, lambda notes: notes.derive(pinned=False))
    assert pinned_runs(store.root) == {RUN}
    assert "counts as pinned" in caplog.text
    assert notes_of(store.root, [RUN]) == {RUN: RunNotes()}


def _tag_often(root: Path, name: str) -> None:
    store = Store(root)
    for number in range(10):
        store.change_notes(RUN, lambda notes, tag=f"{name}{number}": notes.with_tags((tag,)))


def test_of_two_processes_that_change_notes_none_is_lost(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_tag_often, args=(store.root, name)) for name in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert len(load_notes(store.root, RUN).tags) == 20


def test_notes_travel_between_machines(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    first.change_notes(RUN, lambda notes: notes.with_tags(("a",)))
    assert load_notes(second.runs_root(), RUN).tags == ("a",)
    assert second.change_notes(RUN, lambda notes: notes.with_tags(("b",))).tags == ("a", "b")
    assert load_notes(first.runs_root(), RUN).tags == ("a", "b")
    assert load_notes(first.root, RUN) == RunNotes()


def test_of_two_changes_at_once_on_two_machines_none_is_lost(machine: Machine) -> None:
    first, second = machine("first"), machine("second")

    def late(notes: RunNotes) -> RunNotes:
        if not notes.tags:
            second.change_notes(RUN, lambda notes: notes.with_tags(("b",)))
        return notes.with_tags(("a",))

    assert first.change_notes(RUN, late).tags == ("b", "a")


def test_gc_of_the_remote_keeps_a_pinned_run_and_takes_the_notes_of_others(machine: Machine) -> None:
    store = machine("first")
    store.change_notes(RUN, lambda notes: notes.derive(pinned=True))
    assert find_unneeded_objects(store.remote, 0, 0) == []
    store.change_notes(RUN, lambda notes: notes.derive(pinned=False))
    unneeded = {item.path.as_posix() for item in find_unneeded_objects(store.remote, 0, 0)}
    assert unneeded == {f"runs/{RUN}", f"notes/{RUN}/00000001", f"notes/{RUN}/00000002"}
    assert find_unneeded_objects(store.remote, None, 0) == []


def test_damaged_notes_in_the_remote_are_named_and_keep_their_run(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = machine("first")
    store.change_notes(RUN, lambda notes: notes.with_tags(("a",)))
    path = tmp_path / "shared" / "notes" / RUN / "00000001"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SpecError, match=rf"notes/{RUN}/00000001: damaged.*Remove this object"):
        store.change_notes(RUN, lambda notes: notes.with_tags(("b",)))
    assert load_notes(machine("second").runs_root(), RUN) == RunNotes()
    assert "00000001: damaged" in caplog.text
    assert find_unneeded_objects(store.remote, 0, 0) == []
    assert any("notes/" in problem for problem in find_damaged_objects(store.remote))


def test_a_forgotten_run_is_gone_from_the_remote_with_its_notes(machine: Machine) -> None:
    store = machine("first")
    store.change_notes(RUN, lambda notes: notes.with_tags(("a",)))
    assert list((store.runs_root() / "runs").iterdir())
    store.forget_report(RUN)
    assert store.remote.objects("runs/") == store.remote.objects("notes/") == []
    assert not list((store.runs_root() / "runs").iterdir())
