"""Folders for the user that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import SpecError


def refuse_used(out: Path) -> None:
    """Raise SpecError if `out` is there already, except as an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpecError(f"--out = {out}: is there already. Give another folder, or remove it")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` to write into; it is renamed to `out` if the block raises nothing.

    Raises SpecError as `refuse_used` does, and if no folder can be made there.
    """
    refuse_used(out)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
    except OSError as error:
        raise SpecError(f"--out = {out}: cannot be made ({error.strerror}). Give another folder") from error
    try:
        yield building
        if out.exists():
            out.rmdir()
        os.rename(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
