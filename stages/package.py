"""Package: build one folder with the blob and a self-contained train_gpt.py that holds the run's settings.

    python -m stages package --spec spec.json --input packed=…/record.json

PackedModel → Package and package/{train_gpt.py, model.fwz}. The script needs nothing of ours. It imports only
Python's standard library, torch, numpy, sentencepiece and zstandard; the stage checks this.
"""

import hashlib
import logging
import shutil
from pathlib import PurePosixPath

from schemas.errors import SpecError
from schemas.package import BLOB_NAME, SCRIPT_NAME, Package, PackageSpec
from schemas.quantize import PackedModel
from stages.packaging.script import as_shipped, program
from stages.store.workspace import DamagedFileError, Workspace

log = logging.getLogger(__name__)

FOLDER_NAME = "package"


def package(spec: PackageSpec, packed: PackedModel, work: Workspace) -> Package:
    """The script bundled from `stages.core.program`, and a verified copy of the blob, in one folder.

    Raises StageError when the modules cannot become one script or it would import what a reviewer need not
    have, SpecError for the recipe of another blob.
    """
    if spec.recipe is not None and spec.recipe.quantizer.method != packed.method:
        raise SpecError(
            f"recipe.quantizer.method = {spec.recipe.quantizer.method}: the blob was made by {packed.method}"
        )
    source, modules = program(spec, spec.recipe)
    folder = work.out_dir / FOLDER_NAME
    folder.mkdir()
    script, blob = folder / SCRIPT_NAME, folder / BLOB_NAME
    script.write_bytes(as_shipped(source, spec))
    # A copy, not a hard link: damage to one of the two must not reach the other.
    shutil.copyfile(work.read(packed.blob), blob)
    script_ref, blob_ref = work.ref(script), work.ref(blob)
    if blob_ref.sha256 != packed.blob.sha256:
        raise DamagedFileError(f"{blob} is no true copy of the blob: its sha256 is {blob_ref.sha256[:12]}…")
    log.info(
        "packaged %s bytes of code (%s before compression) from %d modules and %s bytes of model",
        f"{script_ref.num_bytes:,}",
        f"{len(source.encode()):,}",
        len(modules),
        f"{blob_ref.num_bytes:,}",
    )
    return Package(
        folder=str(PurePosixPath(script_ref.path).parent),
        script=script_ref,
        blob=blob_ref,
        modules=modules,
        source_sha256=hashlib.sha256(source.encode()).hexdigest(),
    )
