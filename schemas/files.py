"""A file in the store, where a result came from, and the record that every stage leaves beside its files."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from schemas.base import SCHEMA_VERSION, Schema, SchemaVersion, Volatile

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def inside_the_store(path: str) -> str:
    """`path`, which must be relative and stay below the store's root. Raises ValueError."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\x00" in path or not pure.parts:
        raise ValueError(f"{path!r} must be a relative path inside the store, without '..'")
    return path


StorePath = Annotated[str, AfterValidator(inside_the_store)]


class FileRef(Schema):
    """A file, named relative to the store's root so that a moved store still works, and identified by its
    content.
    """

    path: StorePath
    num_bytes: NonNegativeInt
    sha256: Sha256

    def identity(self) -> Any:
        return self.sha256

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


class SourceFile(Schema):
    """A file of the user's, outside the store: an input of tokenization."""

    path: str
    num_bytes: NonNegativeInt
    sha256: Sha256

    def identity(self) -> Any:
        return self.sha256


class Machine(Schema):
    """Where a result was computed. Equal settings give equal bits on one `kind` of machine."""

    kind: str = Field(description="what has to be equal for equal bits, in one line")
    cpu: str = Field(description="model name")
    capability: str = Field(description="level of torch's own CPU kernels, caps of the environment applied")
    isa: str = Field(description="instruction set of matrix products, likewise")
    cores: PositiveInt
    precision: str = Field(description="of matrix products, and why; empty for a stage that multiplies none")
    processes: PositiveInt | None
    threads: PositiveInt | None = Field(description="CPU threads of each process")
    gpus: tuple[str, ...] = Field(description="models of the GPUs that were visible; empty on the CPU")
    cuda: str | None = Field(description="version that torch was built for; None: a CPU build")
    triton: str
    torch: str = Field(description="version and commit of the build")
    python: str
    switches: dict[str, str] = Field(description="environment variables that change numbers")


class Provenance(Schema):
    """How a result came about. Never part of an identity."""

    stage: str
    key: str
    created_at: str
    seconds: NonNegativeFloat
    host: str
    fairway_version: str
    code_sha256: str
    libraries: dict[str, str]
    machine: Machine
    inputs: dict[str, str]  # name of the input -> fingerprint of its content


SpecT = TypeVar("SpecT")
ResultT = TypeVar("ResultT", bound=Schema)


class StageRecord(Schema, Generic[SpecT, ResultT]):
    """What lies as record.json beside a stage's files: what was asked, what came out, and from what."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    provenance: Volatile[Provenance]
    spec: Volatile[SpecT]
    result: ResultT
