"""The readable content of a submission folder, and what its figures and logs say about each other.

Nothing of the folder is executed.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

from schemas.package import SCRIPT_NAME
from schemas.submission import INFO_NAME, README_NAME, REQUIREMENTS_NAME
from stages.submission.figures import MIN_DIGITS, Figure, figure_of, is_number
from stages.submission.logs import Log, lines_of, read_log
from stages.submission.static_code import Findings, inspect_program
from stages.submission.untrusted import (
    SOURCE_LIMIT_BYTES,
    UnreadableError,
    list_files,
    read_bytes,
    read_json_object,
    read_text,
)

Verdict = tuple[Literal["pass", "fail", "unknown"], str]
"""What a rule says of a folder, and why."""

LOGS_LIMIT_BYTES = 256 * 2**20
MAX_LOGS = 200
TEXTS = (
    ".md",
    ".log",
    ".txt",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".html",
    ".out",
    ".err",
    ".yaml",
    ".yml",
    ".toml",
    ".rst",
    ".tex",
)
_LOOKED_INTO_BYTES = 64 * 2**10  # smaller texts hold too little to matter
_DATA_SHARE = 0.5  # of its size that a text of words and figures compresses to at most


@dataclass
class Folder:
    """The readable content of a folder. `errors` says why a part could not be read."""

    path: Path
    sizes: dict[str, int] = field(default_factory=dict)  # plain files only
    odd: list[str] = field(default_factory=list)  # links, pipes, devices
    info: dict[str, Any] = field(default_factory=dict)
    exact: dict[str, Any] = field(default_factory=dict)  # the same with decimals as they were written
    readme: str = ""
    logs: list[Log] = field(default_factory=list)
    data: list[str] = field(default_factory=list)  # files with a text's name that hold data
    program: Findings = field(default_factory=Findings)
    errors: dict[str, str] = field(default_factory=dict)
    left_out: str = ""  # why not every log was read


def read_folder(path: Path) -> Folder:
    """What can be read of the folder; `errors` has the rest."""
    folder = Folder(path)
    try:
        sizes = list_files(path)
    except UnreadableError as error:
        folder.errors["files"], folder.program = str(error), Findings(parsed=str(error))
        return folder
    folder.sizes = {name: about.st_size for name, about in sizes.items() if S_ISREG(about.st_mode)}
    folder.odd = [name for name in sizes if name not in folder.sizes]

    def attempt(name: str, action: Callable[[], Any], default: Any) -> Any:
        try:
            return action()
        except UnreadableError as error:
            folder.errors[name] = str(error)
            return default

    folder.info = attempt(INFO_NAME, lambda: read_json_object(path / INFO_NAME), {})
    folder.exact = attempt(INFO_NAME, lambda: read_json_object(path / INFO_NAME, exact=True), {})
    folder.readme = attempt(README_NAME, lambda: read_text(path / README_NAME), "")
    source = attempt(SCRIPT_NAME, lambda: read_bytes(path / SCRIPT_NAME, SOURCE_LIMIT_BYTES), None)
    if source is None:
        folder.program = Findings(parsed=folder.errors[SCRIPT_NAME])
    else:
        files = frozenset(name for name in folder.sizes if name.endswith(".py"))
        folder.program = inspect_program(
            source, files, lambda name: read_bytes(path / name, SOURCE_LIMIT_BYTES)
        )
    room, source_lines = LOGS_LIMIT_BYTES, lines_of(folder.program.text)
    for name in folder.sizes:
        if not name.lower().endswith(TEXTS) or name == INFO_NAME:
            continue
        if (room := room - folder.sizes[name]) < 0:
            folder.left_out = (
                f"{name} is left out: the texts together have more than {LOGS_LIMIT_BYTES:,} bytes"
            )
            folder.data.append(name)
            continue
        content = attempt(name, partial(read_bytes, path / name), b"")
        if name in folder.errors or _is_data(content):
            folder.data.append(name)
        if _is_log(name) and len(folder.logs) == MAX_LOGS:
            folder.left_out = f"{name} is left out: there are more than {MAX_LOGS} logs"
        elif _is_log(name):
            folder.logs.append(read_log(name, content.decode("utf-8", "replace"), source_lines))
    return folder


def _is_data(content: bytes) -> bool:
    """Whether a file with a text's name holds binary data, or text too dense for words."""
    if len(content) <= _LOOKED_INTO_BYTES:
        return False
    return b"\0" in content or len(zlib.compress(content, 1)) > _DATA_SHARE * len(content)


def _is_log(name: str) -> bool:
    base = name.rpartition("/")[2].lower()
    return base.endswith((".log", ".out")) or (
        base.endswith(".txt") and not base.startswith(REQUIREMENTS_NAME.removesuffix(".txt"))
    )


def results_of(folder: Folder, exact: bool = False) -> dict[str, Any]:
    """Result of each seed, in whatever form submission.json gives them; {} if it gives none."""
    info = folder.exact if exact else folder.info
    for key in ("seed_results", "val_bpb_seeds", "per_seed", "seeds", "results"):
        value = info.get(key)
        if (
            isinstance(value, list)
            and value
            and all(isinstance(item, dict) and "seed" in item for item in value)
        ):
            value = {str(item["seed"]): item for item in value}
        if isinstance(value, dict):
            seeds = {name.lower().removeprefix("seed").strip("_- "): item for name, item in value.items()}
            if numbered := {seed: item for seed, item in seeds.items() if seed.isdecimal()}:
                return numbered  # without the rows of means
    return {}


def positive_number(folder: Folder, name: str) -> float | None:
    """The field of submission.json if it is a number above 0."""
    value = folder.info.get(name)
    return value if is_number(value) and value > 0 else None


def declared_scores(folder: Folder, log: Log) -> list[Figure]:
    """The bits per byte that submission.json gives for the log's seeds, or for the whole."""
    results = results_of(folder, exact=True)
    values = [score_of(result) for seed, result in results.items() if seed_key(seed) in log.seeds]
    stated = [figure for figure in values if figure is not None]
    if stated:
        return stated
    figures = [figure_of(folder.exact.get("val_bpb")), *map(score_of, [*results.values()][:100])]
    return [figure for figure in figures if figure is not None]


def score_of(result: Any) -> Figure | None:
    """The bits per byte of a seed's result, with its digits."""
    return (
        figure_of(result.get("val_bpb_exact", result.get("val_bpb")))
        if isinstance(result, dict)
        else figure_of(result)
    )


def seed_key(seed: str) -> str:
    """A seed as logs name it, without leading zeros."""
    return seed.lstrip("0") or "0"


def is_another_run(log: Log, folder: Folder) -> bool:
    """Whether a log is of an ablation or an earlier run, not of the submitted one."""
    top = [
        other
        for other in folder.logs
        if "/" not in other.name and not other.is_side_run and not other.is_empty
    ]
    if log.is_side_run or ("/" in log.name and top):
        return True
    wanted = declared_scores(folder, log)
    if not log.scores or not wanted or _has_score(log, wanted):
        return False
    return any(other is not log and _has_score(other, wanted) for other in folder.logs)


def _has_score(log: Log, wanted: list[Figure]) -> bool:
    return any(score.decimals >= MIN_DIGITS and score.agrees(want) for score in log.scores for want in wanted)
