"""Where and how stages run. Nothing here bears identity: none of it changes a number in a result."""

from collections.abc import Callable

from pydantic import Field, PositiveFloat, PositiveInt

from schemas.base import Schema

Progress = Callable[[float, float, str], None]


class RunOptions(Schema):
    store: str = Field(".fairway", description="folder of the content-addressed store")
    log_every_seconds: PositiveFloat = Field(5.0, description="seconds between training log lines")
    checkpoint_every_seconds: PositiveFloat = Field(30.0, description="seconds between training checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="training checkpoints kept")
    stage_timeout_seconds: PositiveFloat | None = Field(
        None, description="a stage's process is ended after this; empty: never"
    )
    retries: int = Field(3, ge=0, le=20, description="further tries after a transient error")
    encode_threads: int = Field(
        0,
        ge=0,
        le=64,
        description="threads that encode text; 0: one for each core that this process may use, 4 at most",
    )
