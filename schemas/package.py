"""Packaging: the blob in; the folder that ships (one script and the blob) out."""

from pydantic import Field

from schemas.base import Schema
from schemas.files import FileRef, Sha256, StorePath

SCRIPT_NAME = "train_gpt.py"
BLOB_NAME = "model.fwz"


class PackageSpec(Schema):
    keep_comments: bool = Field(True, description="keep comments and docstrings in the bundled script")


class Package(Schema):
    """Files of the folder, in the order they are listed."""

    folder: StorePath = Field(description="relative to the store")
    script: FileRef
    blob: FileRef
    modules: tuple[str, ...] = Field(description="modules that the script was bundled from")
    source_sha256: Sha256 = Field(description="of the bundled script")
