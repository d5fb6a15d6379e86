"""Progress events of a running stage: the names of its loggers, and a function that receives progress."""

from collections.abc import Callable
from contextvars import ContextVar

OUR_LOGGERS = ("stages", "flows")

StageProgress = Callable[[str, float, float, str], None]
"""Called with stage, done, total and unit."""

stage_progress: ContextVar[StageProgress | None] = ContextVar("stage_progress", default=None)
"""Set around a flow call by the command line."""
