"""Where and how stages run. Nothing here bears identity: none of it changes a number in a result."""

import re
from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.json_schema import SkipJsonSchema

from schemas.base import Schema
from schemas.held_out import (
    BEHIND_PATTERN,
    RULES_PATTERN,
    SHARE_PATTERN,
    HeldOut,
    parse_behind,
    parse_rules,
    parse_share,
)
from schemas.tokenize_parts import TokenizedParts

Progress = Callable[[float, float, str], None]
LauncherName = Literal["local", "slurm", "kubernetes"]
TrackerName = Literal["trackio", "tensorboard", "wandb", "mlflow"]


def remote_address(url: str) -> str:
    """`url` if it names a remote store or is empty. Raises ValueError; its words repeat no credential."""
    if not url:
        return url
    parts = urlsplit(url)
    plain = url == f"{parts.scheme}://{parts.netloc}{parts.path}" and "@" not in url
    named = parts.path.strip("/") and not parts.netloc if parts.scheme == "file" else parts.netloc
    if parts.scheme not in ("s3", "gs", "az", "file") or not plain or not named:
        raise ValueError(
            "must be s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, az://CONTAINER/FOLDER or file:///FOLDER, "
            "without user, password or query: credentials belong into the environment"
        )
    return url.rstrip("/")


ENGINE_PATTERN = r"^(threads|(dask|ray):\S+)$"


def engine_name(engine: str) -> str:
    """`engine` if it is one. Raises ValueError."""
    if not re.fullmatch(ENGINE_PATTERN, engine):
        raise ValueError(
            "must be threads, dask:HOST:PORT with the address of Dask's scheduler, or ray:ray://HOST:PORT "
            "with that of a Ray cluster"
        )
    return engine


def _read_by(parse: Callable[[str], object]) -> AfterValidator:
    """Refuses a text that `parse` refuses, and keeps the text."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


class RunOptions(Schema):
    store: str = Field(".fairway", description="folder of the content-addressed store")
    remote: Annotated[str, AfterValidator(remote_address)] | None = Field(
        None,
        description="store that machines share, s3://…, gs://…, az://… or file:///…; empty: none",
        json_schema_extra={"pattern": r"^((s3|gs|az)://[^/@?#]+|file:///)[^@?#]*$"},
    )
    log_every_seconds: PositiveFloat = Field(5.0, description="seconds between training log lines")
    checkpoint_every_seconds: PositiveFloat = Field(30.0, description="seconds between training checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="training checkpoints kept")
    stage_timeout_seconds: PositiveFloat | None = Field(
        None, description="a stage's process is ended after this; empty: never"
    )
    retries: int = Field(3, ge=0, le=20, description="further tries after a transient error")
    launcher: LauncherName = Field(
        "local",
        description="what starts training on several machines; local: all on this one, as a trial",
    )
    interface: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._:-]{1,15}$",
        description="network interface of processes that train on several machines; empty: the only one",
    )
    group_timeout_seconds: PositiveFloat | None = Field(
        None,
        description="training ends when a process does not answer for so long; empty: 120 on the CPU, 600 "
        "with a GPU or torch.compile",
    )
    encode_threads: int = Field(
        0,
        ge=0,
        le=64,
        description="threads that encode text; 0: one for each core that this process may use, 4 at most",
    )
    engine: Annotated[str, AfterValidator(engine_name)] = Field(
        "threads",
        description="what tokenizes the parts of a large corpus: threads, dask:ADDRESS or ray:ADDRESS",
        json_schema_extra={"pattern": ENGINE_PATTERN},
    )
    validate_every: Annotated[str, _read_by(parse_share)] | None = Field(
        None,
        description="share of the training between two scores of held-out text, as 5%; empty: no scores",
        json_schema_extra={"pattern": SHARE_PATTERN},
    )
    validate_tokens: NonNegativeInt = Field(
        65_536, description="held-out tokens scored each time, evenly spaced; 0: all of the validation split"
    )
    stop_if: Annotated[str, _read_by(parse_rules)] | None = Field(
        None,
        description="ends a training that scores worse, as 'val_bpb > 2.4 at 20%'; empty: never",
        json_schema_extra={"pattern": RULES_PATTERN},
    )
    stop_behind: Annotated[str, _read_by(parse_behind)] | None = Field(
        None,
        description="RUN:MARGIN ends a training that is so many bits per byte behind RUN; empty: never",
        json_schema_extra={"pattern": BEHIND_PATTERN},
    )
    report_to: TrackerName | None = Field(
        None, description="experiment tracker that gets the figures of each training step; empty: none"
    )
    held_out: SkipJsonSchema[HeldOut | None] = Field(
        None, description="made of the four options above by the flow; no user gives it"
    )
    parts: SkipJsonSchema[TokenizedParts | None] = Field(
        None, description="the tokenized parts of the corpus, made by the flow; no user gives them"
    )
