"""How `make test` shares the files among its workers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import FIRST, ON_ONE_WORKER, ByFile, pytest_collection_modifyitems

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("folder", FIRST)
def test_every_folder_that_is_named_has_tests(folder: str) -> None:
    assert list((ROOT / folder).rglob("test_*.py"))


def test_files_that_share_a_real_run_are_one_unit_and_every_other_file_is_its_own() -> None:
    by_file = object.__new__(ByFile)  # without the session of xdist, of which this needs nothing
    units: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        name = path.relative_to(ROOT).as_posix()
        units.setdefault(by_file._split_scope(f"{name}::test_some[a::b]"), set()).add(name)
    assert set(ON_ONE_WORKER) <= set(units)
    for unit, files in units.items():
        assert files == {unit} or (
            unit in ON_ONE_WORKER and len(files) > 5 and all(name.startswith(unit) for name in files)
        )


def test_what_takes_longest_is_begun_first_and_the_rest_keeps_its_order() -> None:
    ids = ["tests/b.py::x", *(f"{folder}test_some.py::y" for folder in reversed(FIRST)), "tests/a.py::z"]
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in ids]
    pytest_collection_modifyitems(items)
    first = [f"{folder}test_some.py::y" for folder in FIRST]
    assert [item.nodeid for item in items] == [*first, "tests/b.py::x", "tests/a.py::z"]
