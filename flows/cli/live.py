"""Terminal output of `fairway` while something runs: log lines, progress bars and waits."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows.server.environment import Waiting, say_waiting
from flows.tasks.progress import OUR_LOGGERS, StageProgress
from schemas.printable import printable


def is_screen(console: Console) -> bool:
    """Whether the output is a real terminal, and not a file that gets colours by FORCE_COLOR."""
    return console.is_terminal and console.file.isatty()


@contextmanager
def live_output(console: Console) -> Iterator[StageProgress]:
    """Show log lines and, on a terminal, a progress bar for the current stage.

    Yields the function that receives the progress of a stage.
    """
    progress = Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not is_screen(console),
    )
    bars: dict[str, TaskID] = {}

    def show(stage: str, done: float, total: float, unit: str) -> None:
        if stage not in bars:
            for other in list(bars):
                progress.remove_task(bars.pop(other))
            bars[stage] = progress.add_task(stage, total=total, amount="")
            progress.start()
        progress.update(bars[stage], completed=done, total=total, amount=_amount(done, total, unit))
        if done >= total:
            # Nothing to show until the next stage reports; an empty display would only blank the line again
            # and again.
            progress.stop()
            progress.remove_task(bars.pop(stage))

    with log_to(console):
        try:
            yield show
        finally:
            progress.stop()


def waiting_on(console: Console) -> Waiting:
    """A context manager for waits: on a terminal a line with the seconds so far, elsewhere a log line."""

    @contextmanager
    def wait(what: str) -> Iterator[None]:
        columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task(printable(what), total=None)
            yield

    return wait if is_screen(console) else say_waiting


@contextmanager
def log_to(console: Console) -> Iterator[None]:
    """Send our loggers' lines to `console` only: Prefect's own console handler would repeat them."""
    handler = _handler(console)
    loggers = [logging.getLogger(name) for name in OUR_LOGGERS]
    before = [(logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, (propagate, level) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
            logger.setLevel(level)


def _handler(console: Console) -> logging.Handler:
    handler: logging.Handler
    if is_screen(console):
        handler = RichHandler(
            console=console,
            show_path=False,
            show_level=False,
            omit_repeated_times=False,
            log_time_format="%H:%M:%S",
        )
        handler.setFormatter(_PrintableFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(_PrintableFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handler


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _amount(done: float, total: float, unit: str) -> str:
    if unit == "%":
        return f"{done:.0f} %"
    return f"{done:,.0f} / {total:,.0f} {unit}"
