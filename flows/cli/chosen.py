"""Choice of a run on the command line: its start, its text and the settings that the options change."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.inputs.own_text import refuse_small_text, text_settings
from flows.inputs.run_file import ENDING
from flows.inputs.specs import Plan, plan_from
from flows.inputs.starts import Start, preset_names, start_of_file, start_of_preset
from schemas.errors import SpecError
from schemas.printable import printable
from stages.store.runs import find_run

DEFAULT_PRESET = "demo"


def start_of_run(
    files: Sequence[str], preset: str | None, like: str | None, runs_root: Callable[[], Path]
) -> Start:
    """What `fairway run` starts from: one of the three, or the default preset.

    Raises SpecError for more than one, and for what the shell made of a pattern without quotes.
    """
    if len(files) > 1 or (files and not files[0].endswith(ENDING)):
        raise SpecError(_no_run_file(files))
    given = {"FILE": files, "--preset": preset, "--like": like}
    if len(chosen := [name for name, value in given.items() if value]) > 1:
        raise SpecError(f"{' and '.join(chosen)}: each names what the run starts from; give one of them")
    if files:
        return start_of_file(Path(files[0]))
    if like:
        report = find_run(runs_root(), like)
        return Start(report.preset, report.spec.without_qat_grid())
    return start_of_preset(preset or DEFAULT_PRESET)


def start_of_either(given: str) -> Start:
    """The run file or the preset of this name. Raises SpecError for neither."""
    return start_of_file(Path(given)) if given.endswith(ENDING) else start_of_preset(given)


def chosen_plan(start: Start, overrides: Sequence[str], texts: Sequence[str] | None) -> Plan:
    """The plan of a run that starts there, reads `texts` if there are some, and has the overrides.

    Notices about a small text go to standard error. Raises SpecError as `resolve` and `text_settings` do, and
    for too little text.
    """
    with _notices():
        own = text_settings(texts, start.spec, overrides) if texts else []
        plan = plan_from(start, [*own, *overrides])
        refuse_small_text(plan.spec)
    return plan


def _no_run_file(files: Sequence[str]) -> str:
    if len(files) == 1 and files[0] in preset_names():
        return f"FILE = {files[0]}: is the name of a preset. Write --preset {files[0]}"
    return (
        f"FILE = {' '.join(files[:3])}{' …' * (len(files) > 3)}: a run takes one run file, *{ENDING}. A "
        "pattern of texts needs quotes: --text 'books/*.txt'"
    )


@contextmanager
def _notices() -> Iterator[None]:
    """Show the lines about the user's text: no log is open before the run starts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    logger = logging.getLogger("flows.inputs.own_text")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
