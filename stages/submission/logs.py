"""Parser of training logs: sizes (bytes), durations (seconds), scores (bits per byte) and seeds.

It reads a log line by line, in time linear in its length.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from stages.submission.figures import Figure, figures_in, integer_after, seconds_at
from stages.submission.untrusted import short_lines

MAX_FIGURES = 2_000  # of one kind that are kept of a log
MAX_SEEDS = 10_000
_SEED = re.compile(r"seeds?[^A-Za-z0-9]{0,3}(?:is )?(\d{1,20})(?![\d.])", re.IGNORECASE)
_SEED_IN_NAME = re.compile(r"(?:seed|(?<![a-z0-9])s)[^a-z0-9]{0,2}(\d{1,20})(?!\d)", re.IGNORECASE)
_ONLY_A_NUMBER = re.compile(r"(?:train|training|log|run|train_log|out)?[_.-]?(\d{2,20})", re.IGNORECASE)
_CODE = ("os.environ", "import ", "def ", "log0(", "log(f", "print(", "argparse", "add_argument", " f'", 'f"')
_SIDE_RUN = ("ablat", "baseline", "sweep", "smoke", "debug", "fail", "dry", "old", "build", "prep", "compare")
_TOTALS = (
    "total submission size",
    "total artifact size",
    "total submission bytes",
    "total artifact bytes",
    "total_submission_bytes",
    "total_submission_size",
    "submission size",
    "submission_size",
    "artifact size",
    "artifact_size",
    "artifact_bytes",
    "artifact bytes",
    "bytes_total",
)
_LIMITS = ("limit", "cap", "budget", "target", "allow", "mean", "avg", "spare", "headroom", "margin")
_UNPACKED = ("", "bytes", "raw", "uncompressed", "fp32", "bf16")
_OWN_TRAINING = re.compile(r"\btrained \d{1,12} steps in ")
_OWN_SCORE = re.compile(r"^val_bpb_\w{1,40} (\d{1,6}\.\d{1,12}) .{0,200} in (\d{1,9}(?:\.\d{1,6})?) s$")
_BPB = re.compile(r"bpb[ \t]{0,3}[:=][ \t]{0,3}(\d{1,6}\.\d{1,12})", re.IGNORECASE)


@dataclass(frozen=True)
class Total:
    """A stated size of code and model together.

    `packed`: the model was compressed, as the line's label says.
    """

    bytes: int
    packed: bool


@dataclass(frozen=True)
class Evaluation:
    """One timed evaluation; `score` is its bits per byte where the line has them."""

    seconds: float
    score: Figure | None
    whole: bool = False  # the line sums up all that counts as evaluation


@dataclass
class Log:
    """The figures of one log, the last of each kind, in the order of its lines."""

    name: str
    totals: deque[Total] = field(default_factory=partial(deque, maxlen=MAX_FIGURES))
    raw_models: deque[int] = field(default_factory=partial(deque, maxlen=MAX_FIGURES))
    packed_models: deque[int] = field(default_factory=partial(deque, maxlen=MAX_FIGURES))
    code: deque[int] = field(default_factory=partial(deque, maxlen=MAX_FIGURES))
    training: tuple[float, float] | None = None  # the longest: seconds, and by how much they may be rounded
    evaluations: deque[Evaluation] = field(default_factory=partial(deque, maxlen=MAX_FIGURES))
    scores: deque[Figure] = field(default_factory=partial(deque, maxlen=MAX_FIGURES))
    seeds: set[str] = field(default_factory=set)
    processes: int | None = None
    is_empty: bool = True

    @property
    def is_side_run(self) -> bool:
        """Whether the name shows that the log is not of the submitted run."""
        return any(word in self.name.lower() for word in _SIDE_RUN)

    @property
    def total(self) -> Total | None:
        """The size that counts: the last of those after compression, else the last."""
        return next(
            (total for total in reversed(self.totals) if total.packed),
            self.totals[-1] if self.totals else None,
        )

    @property
    def total_is_raw(self) -> bool:
        """Whether the total is that of an uncompressed model, which the baseline's log also states."""
        total = self.total
        return (
            total is not None
            and not total.packed
            and any(raw < total.bytes <= raw + 10**6 for raw in self.raw_models)
        )


def lines_of(program: str) -> frozenset[str]:
    """The lines of a source that a log may repeat."""
    return frozenset(stripped for line in program.splitlines() if (stripped := line.strip()))


def read_log(name: str, text: str, source: frozenset[str] = frozenset()) -> Log:
    """The figures of a log's text. Lines of the program's `source` within it are ignored."""
    log = Log(name, is_empty=not text.strip())
    log.seeds |= {_plain(match[1]) for match in _SEED_IN_NAME.finditer(name[-1000:])}
    if match := _ONLY_A_NUMBER.fullmatch(name.rpartition("/")[2].rpartition(".")[0]):
        log.seeds.add(_plain(match[1]))
    for line in _output_lines(text, source):
        _read_line(line, log)
    return log


def _plain(seed: str) -> str:
    return seed.lstrip("0") or "0"


def _output_lines(text: str, source: frozenset[str]) -> Iterator[str]:
    """The lines that the run printed, without the program's source, with which many logs begin."""
    before = False  # a single line that the source has too may be a coincidence; two in a row are the source
    held = ""
    for line in short_lines(text):
        line = line.strip()
        if not line or line.startswith("#") or any(mark in line for mark in _CODE):
            continue
        if line in source:
            held, before = ("" if before else line), True
            continue
        if held:
            yield held
        held, before = "", False
        yield line
    if held:
        yield held


def _read_line(line: str, log: Log) -> None:
    low = line.lower()
    if "seed" in low and len(log.seeds) < MAX_SEEDS:
        log.seeds |= {_plain(match[1]) for match in _SEED.finditer(line)}
    if "world_size" in low and (size := integer_after(low, low.find("world_size"))) is not None:
        log.processes = size
    if "bytes" in low or "size" in low:
        _read_sizes(low, log)
    if "train_time" in low or "trained " in low:
        _read_training(low, log)
    if "bpb" in low:
        _read_score(line, low, log)
    elif (at := low.find("total_eval_time")) >= 0 and (
        seconds := seconds_at(low, at + len("total_eval_time"))
    ):
        log.evaluations.append(Evaluation(seconds[0], None, whole=True))


def _read_sizes(low: str, log: Log) -> None:
    for mark in _TOTALS:
        if (at := low.find(mark)) >= 0:
            size, label = integer_after(low, at), _label(low, at + len(mark))
            if size is not None and size >= 1000 and not any(word in label for word in _LIMITS):
                log.totals.append(Total(size, packed=label not in _UNPACKED))
            return
    if (at := low.find("serialized model")) >= 0 and (size := integer_after(low, at)) is not None:
        (
            log.raw_models if _label(low, at + len("serialized model")) in _UNPACKED else log.packed_models
        ).append(size)
    elif (at := low.find("code size")) >= 0 and (size := integer_after(low, at)) is not None:
        log.code.append(size)


def _label(low: str, at: int) -> str:
    """The text between a phrase and its colon: the name of a format, as in `size int8+zlib: 5`."""
    return low[at:].partition(":")[0].partition("=")[0].strip(" ()")


def _read_training(low: str, log: Log) -> None:
    at = low.find("train_time")
    while at >= 0:
        if duration := seconds_at(low, at + len("train_time")):
            _add_training(log, duration)
        at = low.find("train_time", at + 1)
    for match in _OWN_TRAINING.finditer(low):
        if duration := seconds_at(low, match.end()):
            _add_training(log, duration)


def _add_training(log: Log, duration: tuple[float, float]) -> None:
    if log.training is None or duration[0] - duration[1] > log.training[0] - log.training[1]:
        log.training = duration


def _read_score(line: str, low: str, log: Log) -> None:
    if own := _OWN_SCORE.match(line):
        score = next(figures_in(own[1]))
        log.scores.append(score)
        log.evaluations.append(Evaluation(float(own[2]), score))
        return
    scores = [figure for match in _BPB.finditer(line) for figure in figures_in(match[1])]
    log.scores += scores
    for mark in ("eval_time", "elapsed"):
        if (at := low.find(mark)) >= 0 and (duration := seconds_at(low, at + len(mark))):
            log.evaluations.append(Evaluation(duration[0], scores[-1] if scores else None))
            return
