"""Build the folder that ships: one self-contained train_gpt.py, and the blob beside it.

    python -m stages.package --spec spec.json --input packed=…/record.json

PackedModel → Package and package/{train_gpt.py, model.fwz}. The script needs nothing of ours: Python's standard library, torch,
numpy, sentencepiece and zstandard are all that it imports, which is checked here.
"""

import logging
import shutil
import sys
from pathlib import PurePosixPath

from schemas.errors import StageError
from schemas.package import BLOB_NAME, SCRIPT_NAME, Package, PackageSpec
from schemas.quantize import PackedModel
from stages.bundle import ENTRY_MODULE, bundle, imported_packages
from stages.workspace import DamagedFileError, Workspace

log = logging.getLogger(__name__)

ALLOWED_PACKAGES = frozenset({"torch", "numpy", "sentencepiece", "zstandard"})
FOLDER_NAME = "package"


def package(spec: PackageSpec, packed: PackedModel, work: Workspace) -> Package:
    """The script bundled from `stages.core.submission`, and a verified copy of the blob, in one folder.

    Raises StageError when the modules cannot become one script or it would import what a reviewer need not have.
    """
    source, modules = bundle(ENTRY_MODULE, spec.keep_comments)
    check_imports(source)
    folder = work.out_dir / FOLDER_NAME
    folder.mkdir()
    script, blob = folder / SCRIPT_NAME, folder / BLOB_NAME
    script.write_bytes(source.encode())
    # A copy, not a hard link: damage to one of the two must not reach the other.
    shutil.copyfile(work.read(packed.blob), blob)
    script_ref, blob_ref = work.ref(script), work.ref(blob)
    if blob_ref.sha256 != packed.blob.sha256:
        raise DamagedFileError(f"{blob} is no true copy of the blob: its sha256 is {blob_ref.sha256[:12]}…")
    log.info(
        "packaged %s bytes of code from %d modules and %s bytes of model",
        f"{script_ref.num_bytes:,}",
        len(modules),
        f"{blob_ref.num_bytes:,}",
    )
    return Package(
        folder=str(PurePosixPath(script_ref.path).parent),
        script=script_ref,
        blob=blob_ref,
        modules=modules,
        source_sha256=script_ref.sha256,
    )


def check_imports(source: str) -> None:
    """Raises StageError if the script imports anything but the standard library and the allowed packages."""
    if others := sorted(imported_packages(source) - sys.stdlib_module_names - ALLOWED_PACKAGES):
        allowed = ", ".join(sorted(ALLOWED_PACKAGES))
        raise StageError(f"{SCRIPT_NAME} would import {', '.join(others)}; only the standard library and {allowed} may be needed")


if __name__ == "__main__":
    from stages.by_hand import main

    main("package")
