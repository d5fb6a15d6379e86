"""Packaging: the blob in; the folder that ships (one script and the blob) out."""

from pydantic import Field

from schemas.base import Schema
from schemas.files import FileRef, Sha256, StorePath
from schemas.lora_recipe import LoraRecipe
from schemas.recipe import Recipe

SCRIPT_NAME = "train_gpt.py"
BLOB_NAME = "model.fwz"
LORA_MODULE = "stages.core.lora"
"""Of `Package.modules`, where the script can train at test time."""
ALLOWED_PACKAGES = frozenset({"torch", "numpy", "sentencepiece", "zstandard"})


class PackageOptions(Schema):
    """What the user decides about the script."""

    keep_comments: bool = Field(True, description="keep comments and docstrings in the script")
    compressed: bool = Field(
        False, description="ship the script xz-compressed behind a few lines that unpack it"
    )


class PackageSpec(PackageOptions):
    """The script's content; the pipeline fills in its own settings."""

    recipe: Recipe | LoraRecipe | None = Field(
        None, description="settings of the whole run, which the script repeats; None: it only scores"
    )


class Package(Schema):
    """Files of the folder, in the order they are listed."""

    folder: StorePath = Field(description="relative to the store")
    script: FileRef
    blob: FileRef
    modules: tuple[str, ...] = Field(description="modules that the script was bundled from")
    source_sha256: Sha256 = Field(description="of the bundled script before compression")
