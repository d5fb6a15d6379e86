"""The published rules, applied to any submission folder of the official form (`fairway check FOLDER`).

Nothing of the folder is executed. Each rule gives pass, fail or unknown, and a reason. Sources: the
repository's README, sections FAQ and Submission Process.
"""

import statistics
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

from schemas.check_size import SIZE_LIMIT_BYTES
from schemas.package import BLOB_NAME, SCRIPT_NAME
from schemas.printable import one_line
from schemas.submission import INFO_NAME, LIMIT_SECONDS, README_NAME, REQUIREMENTS_NAME, RuleResult
from stages.core.blob.packing import BlobError, unpack
from stages.submission.figures import (
    MIN_DIGITS,
    Figure,
    code_bytes,
    evaluation_seconds,
    figure_of,
    figures_in,
    is_number,
    model_bytes,
    number_of,
    total_bytes,
    training_seconds,
)
from stages.submission.logs import Log, lines_of, read_log
from stages.submission.static_code import Findings, inspect_program
from stages.submission.untrusted import (
    SOURCE_LIMIT_BYTES,
    UnreadableError,
    list_files,
    read_bytes,
    read_json_object,
    read_text,
    short_lines,
)

# What must be there, and the keys under which it stands too. The repository asks for "your name, GitHub ID,
# val_bpb".
REQUIRED_TEXT = {
    "author": ("name", "authors"),
    "github_id": ("github", "github_username", "github_user", "github_handle"),
}
SCORES = ("val_bpb_mean", "mean_val_bpb", "final_val_bpb", "val_bpb_exact", "bpb")
CAP_GRACE_SECONDS = 1.0
LOGS_LIMIT_BYTES = 256 * 2**20
MAX_LOGS = 200
REASON_CHARACTERS = 900
_MODELS = (
    ".fwz",
    ".ptz",
    ".pt",
    ".pth",
    ".bin",
    ".safetensors",
    ".npz",
    ".npy",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".onnx",
    ".gguf",
    ".weights",
)
_PACKED_MODELS = (
    ".fwz",
    ".ptz",
    ".zst",
    ".zstd",
    ".xz",
    ".lzma",
    ".br",
    ".gz",
    ".bz2",
    ".zlib",
    ".lrz",
    ".7z",
    ".zip",
)
_TEXTS = (
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
_UNCOUNTED_BYTES = 2**20  # of companions that nothing says to be part of the artifact
_SAME_SHARE = 0.01
_SMALLEST_PROGRAM = 4_000  # bytes; what is smaller cannot be the program that a log is of


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


Verdict = tuple[Literal["pass", "fail", "unknown"], str]


def check_folder(path: Path) -> list[RuleResult]:
    """Apply every rule to the folder. Raises SpecError if it is not a readable folder."""
    folder, results = _read(path), []
    for name, rule in RULES.items():
        verdict, reason = rule(folder)
        if (
            verdict == "pass"
            and folder.left_out
            and rule in (size_within_limit, training_in_time, evaluation_in_time)
        ):
            verdict, reason = "unknown", f"{folder.left_out}; the rest says: {reason}"
        results.append(RuleResult(rule=name, verdict=verdict, reason=one_line(reason)[:REASON_CHARACTERS]))
    return results


def _read(path: Path) -> Folder:
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
        if not name.lower().endswith(_TEXTS) or name == INFO_NAME:
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


def files_present(folder: Folder) -> Verdict:
    """README.md, submission.json, a train log and train_gpt.py exist and are plain files."""
    if "files" in folder.errors:
        return "fail", folder.errors["files"]
    missing = [name for name in (README_NAME, INFO_NAME, SCRIPT_NAME) if not folder.sizes.get(name)]
    has_log = any(not log.is_empty for log in folder.logs)
    perhaps = [name for name in folder.sizes if "log" in name.lower() and folder.sizes[name]]
    if not has_log and not perhaps:
        missing.append("a train log (*.log or *.txt)")
    if missing:
        return "fail", f"missing or empty: {', '.join(missing)}"
    if folder.odd:
        return "fail", f"links or special files: {', '.join(folder.odd[:5])}"
    if not has_log:
        return "unknown", f"no *.log or *.txt; {perhaps[0]} may be the train log"
    return "pass", f"{len(folder.sizes)} files, {len(folder.logs)} of them logs"


def info_valid(folder: Folder) -> Verdict:
    """submission.json is JSON with the author's name, GitHub account and val_bpb, of the right types.

    `unknown` if one of them may be under another key.
    """
    if INFO_NAME in folder.errors:
        return "fail", folder.errors[INFO_NAME]
    info, wrong, perhaps = folder.info, [], []
    for name, others in REQUIRED_TEXT.items():
        if isinstance(info.get(name), str) and info[name].strip():
            continue
        instead = [key for key in others if isinstance(info.get(key), str) and info[key].strip()]
        if info.get(name) is None and instead:
            perhaps.append(f"{name} is missing; {instead[0]} may be meant")
        else:
            wrong.append(f"{name} is no text")
    if not _number(folder, "val_bpb"):
        means = [key for key in SCORES if _number(folder, key)] if info.get("val_bpb") is None else []
        (perhaps if means else wrong).append(
            f"val_bpb is missing; {means[0]} may be meant" if means else "val_bpb is no positive number"
        )
    for name in ("val_loss", "bytes_total", "bytes_code"):
        if info.get(name) is not None and number_of(info[name]) is None:
            wrong.append(f"{name} is no positive number")
    if wrong or perhaps:
        return ("fail" if wrong else "unknown"), "; ".join([*wrong, *perhaps])
    return "pass", f"val_bpb {info['val_bpb']} by {info['github_id']}"[:200]


def script_compiles(folder: Folder) -> Verdict:
    """train_gpt.py is Python. It is parsed, not run."""
    program = folder.program
    if program.parsed:
        return "fail", program.parsed
    read = f"unpacked {program.layers} times, " if program.layers else ""
    read += f"with {', '.join(program.modules[:5])}, " if program.modules else ""
    if program.newer:
        return "unknown", f"it needs a newer Python than this one: {program.newer}; {read}read, not run"
    others = [
        name for name in folder.sizes if name.endswith(".py") and name not in (SCRIPT_NAME, *program.modules)
    ]
    left_out = f"; not imported: {', '.join(others[:5])}" if others else ""
    return "pass", f"Python, {read}read, not run{left_out}"


def size_within_limit(folder: Folder) -> Verdict:
    """Code and compressed model together have at most 16,000,000 bytes, by the files, submission.json and
    the logs.

    `unknown` where two of these contradict each other.
    """
    if "files" in folder.errors:
        return "unknown", folder.errors["files"]
    code = _code_bytes(folder)
    models = {name: folder.sizes[name] for name in folder.sizes if _is_model(name)}
    declared = [*_declared_totals(folder)]
    logged = {log.name: size for log in folder.logs if (size := _logged_total(log, declared)) is not None}
    over = [(f"{INFO_NAME} {where}", size) for where, size in declared if size > SIZE_LIMIT_BYTES]
    over += [(where, size) for where, size in _model_fields(folder) if size > SIZE_LIMIT_BYTES]
    if over:
        where, size = max(over, key=lambda item: item[1])
        return "fail", _size_said(size, f"as {where} says")
    if (verdict := _by_logs(folder, logged, declared, code)) is not None:
        return verdict
    if (verdict := _by_files(folder, models, declared, code)) is not None:
        return verdict
    if declared:
        where, size = max(declared, key=lambda item: item[1])
        return "pass", _size_said(size, f"as {INFO_NAME} says in {where}; the model is not in the folder")
    if logged:
        name, size = max(logged.items(), key=lambda item: item[1])
        return "pass", _size_said(size, f"as {name} says; the model is not in the folder")
    parts = [(where, size + code) for where, size in _model_fields(folder)]
    if SCRIPT_NAME in folder.sizes and parts and max(size for _, size in parts) <= SIZE_LIMIT_BYTES:
        where, size = max(parts, key=lambda item: item[1])
        return "pass", _size_said(size, f"{where} and the code of the folder")
    return (
        "unknown",
        (
            f"the folder holds no model, and neither {INFO_NAME} nor a log states the bytes; code "
            f"alone {code:,}"
        ),
    )


def _size_said(size: int, where: str) -> str:
    margin = SIZE_LIMIT_BYTES - size
    side = "below the limit" if margin >= 0 else "over the limit"
    return f"{size:,} bytes ({where}), {abs(margin):,} {side}"


def _is_model(name: str) -> bool:
    return name.lower().endswith(_MODELS) or (
        name.lower().endswith(_PACKED_MODELS) and not name.lower().endswith((".log.gz", ".txt.gz"))
    )


def _code_bytes(folder: Folder) -> int:
    """train_gpt.py and the modules of the folder that it imports."""
    return sum(folder.sizes.get(name, 0) for name in (SCRIPT_NAME, *folder.program.modules))


def _results(folder: Folder, exact: bool = False) -> dict[str, Any]:
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


def _declared_totals(folder: Folder) -> Iterator[tuple[str, int]]:
    yield from total_bytes(folder.info)
    for seed, result in _results(folder).items():
        if isinstance(result, dict):
            yield from ((f"seed {seed} {key}", size) for key, size in total_bytes(result))


def _model_fields(folder: Folder) -> Iterator[tuple[str, int]]:
    yield from ((f"{INFO_NAME} {key}", size) for key, size in model_bytes(folder.info))
    for seed, result in _results(folder).items():
        if isinstance(result, dict):
            yield from ((f"{INFO_NAME} seed {seed} {key}", size) for key, size in model_bytes(result))


def _logged_total(log: Log, declared: list[tuple[str, int]]) -> int | None:
    """The artifact's bytes by a log: the declared ones if it states several totals, else the last."""
    if log.total is None and log.packed_models:
        return log.packed_models[-1] + (log.code[-1] if log.code else 0)
    if log.total is None or log.total_is_raw:
        return None
    last = log.total
    if any(size == last.bytes for _, size in declared):
        return last.bytes
    earlier = {total.bytes for total in log.totals if total.packed or not last.packed}
    same = [size for _, size in declared if size in earlier]
    return max(same) if same else last.bytes


def _by_logs(
    folder: Folder, logged: dict[str, int], declared: list[tuple[str, int]], code: int
) -> Verdict | None:
    """A verdict if a log states more than the limit."""
    over = {name: size for name, size in logged.items() if size > SIZE_LIMIT_BYTES}
    if not over:
        return None
    for log in folder.logs:
        # Code that was made smaller after the run: what is declared is the log's model and the code as it
        # lies here.
        if log.name in over and any(
            model + code == size for model in log.packed_models for _, size in declared
        ):
            del over[log.name]
    if not over:
        return None
    name, size = max(over.items(), key=lambda item: item[1])
    claim = _size_said(size, f"as {name} says") + (
        f"; {INFO_NAME} says {max(size for _, size in declared):,}" if declared else ""
    )
    log = next(log for log in folder.logs if log.name == name)
    if all(_is_another_run(log, folder) for log in folder.logs if log.name in over):
        return "unknown", f"{claim}; the log seems to be of another run"
    # A wrapper or a smaller script may have been made after the run; then the sum of what is here would be
    # within the limit.
    if (
        declared
        and log.packed_models
        and log.code
        and code < log.code[-1]
        and log.packed_models[-1] + code <= SIZE_LIMIT_BYTES
    ):
        shown = (
            f"{claim}; its model and the {SCRIPT_NAME} of the folder have {log.packed_models[-1] + code:,}"
        )
        return ("unknown", shown) if code > _SMALLEST_PROGRAM else ("fail", claim)
    return "fail", claim


def _is_another_run(log: Log, folder: Folder) -> bool:
    """Whether a log is of an ablation or an earlier run, not of the submitted one."""
    top = [
        other
        for other in folder.logs
        if "/" not in other.name and not other.is_side_run and not other.is_empty
    ]
    if log.is_side_run or ("/" in log.name and top):
        return True
    wanted = _declared_scores(folder, log)
    if not log.scores or not wanted or _has_score(log, wanted):
        return False
    return any(other is not log and _has_score(other, wanted) for other in folder.logs)


def _has_score(log: Log, wanted: list[Figure]) -> bool:
    return any(score.decimals >= MIN_DIGITS and score.agrees(want) for score in log.scores for want in wanted)


def _declared_scores(folder: Folder, log: Log) -> list[Figure]:
    """The bits per byte that submission.json gives for the log's seeds, or for the whole."""
    results = _results(folder, exact=True)
    values = [_score_of(result) for seed, result in results.items() if _seed_key(seed) in log.seeds]
    stated = [figure for figure in values if figure is not None]
    if stated:
        return stated
    figures = [figure_of(folder.exact.get("val_bpb")), *map(_score_of, [*results.values()][:100])]
    return [figure for figure in figures if figure is not None]


def _score_of(result: Any) -> Figure | None:
    return (
        figure_of(result.get("val_bpb_exact", result.get("val_bpb")))
        if isinstance(result, dict)
        else figure_of(result)
    )


def _seed_key(seed: str) -> str:
    return seed.lstrip("0") or "0"


def _by_files(
    folder: Folder, models: dict[str, int], declared: list[tuple[str, int]], code: int
) -> Verdict | None:
    """A verdict if the files have more bytes than the figures state, or contradict them."""
    stated = max((size for _, size in declared), default=None)
    claim = "" if stated is None else f"; {INFO_NAME} says {stated:,}"
    if stated is not None and stated < code:
        return (
            "unknown",
            f"{INFO_NAME} says {stated:,} bytes, the code of the folder alone has {code:,}",
        )
    data = {name: folder.sizes[name] for name in folder.data}
    others = {
        name: size
        for name, size in folder.sizes.items()
        if not name.lower().endswith((*_TEXTS, ".py")) and name not in models
    }
    loose = sum(data.values()) + sum(others.values())
    if models:
        name, smallest = min(models.items(), key=lambda item: item[1])
        total = code + smallest
        if stated is not None and (
            fitting := [size for size in models.values() if _near(code + size, stated)]
        ):
            total = code + fitting[0]
        elif stated is not None:
            return (
                ("fail", _size_said(total, f"{name} and the code"))
                if total > SIZE_LIMIT_BYTES and name.lower().endswith(_PACKED_MODELS)
                else ("unknown", f"{name} and the code have {total:,} bytes{claim}")
            )
        if total > SIZE_LIMIT_BYTES:
            return ("fail" if name.lower().endswith(_PACKED_MODELS) else "unknown"), _size_said(
                total, f"{name} and the code"
            ) + claim
        if loose > _UNCOUNTED_BYTES and total + loose > SIZE_LIMIT_BYTES:
            return "unknown", _companions(data | others, loose, claim)
        if SCRIPT_NAME not in folder.sizes:
            return "unknown", f"{name} has {smallest:,} bytes, and there is no {SCRIPT_NAME}{claim}"
        return "pass", _size_said(total, f"{name} and the code")
    if loose > _UNCOUNTED_BYTES and (stated is None or stated + loose > SIZE_LIMIT_BYTES or loose > stated):
        return "unknown", _companions(data | others, loose, claim)
    return None


def _near(size: int, declared: int) -> bool:
    return abs(size - declared) <= max(_UNCOUNTED_BYTES // 8, int(_SAME_SHARE * declared))


def _companions(files: dict[str, int], total: int, claim: str) -> str:
    largest = max(files, key=lambda name: files[name])
    return (
        f"{largest} and {len(files) - 1} more files, {total:,} bytes, are binary and may belong "
        f"to the artifact{claim}"
    )


def size_as_declared(folder: Folder) -> Verdict:
    """bytes_code and bytes_total are those of the files."""
    code = folder.sizes.get(SCRIPT_NAME)
    declared_code = next(((key, size) for key, size in code_bytes(folder.info)), None)
    if declared_code is None or code is None:
        return "unknown", f"{INFO_NAME} has no bytes_code" if code is not None else f"no {SCRIPT_NAME}"
    key, declared = declared_code
    if declared not in (code, _code_bytes(folder)):
        return "fail", f"{key} = {declared:,}, {SCRIPT_NAME} has {code:,}"
    total, blob = _number(folder, "bytes_total"), folder.sizes.get(BLOB_NAME)
    if blob is None or total is None:
        return "pass", f"{key} = {declared:,}; the model is not in the folder"
    return (
        "pass" if total == declared + blob else "fail"
    ), f"bytes_total = {total:,.0f}, the files have {declared + blob:,}"


def track_of(folder: Folder) -> tuple[Literal["record", "non-record", "both", ""], str]:
    """The track of a folder and its source: submission.json, the path, or the beginning of the README.

    The track is `both` if the sources contradict each other, and "" if none names one.
    """
    tracks: dict[str, str] = {}
    for key in ("track", "submission_kind", "submission_type", "category"):
        if isinstance(value := folder.info.get(key), str) and (track := _track_in(value)):
            tracks.setdefault(track, f"{INFO_NAME} {key} = {value[:60]}")
    if folder.info.get("non_record") is True:
        tracks.setdefault("non-record", f"{INFO_NAME} non_record")
    for part in folder.path.absolute().parts:
        track = _track_in(part)
        if track and (part.lower().startswith("track") or track == "non-record"):
            tracks.setdefault(track, f"the folder {part}")
    if len(tracks) == 1:
        track, where = next(iter(tracks.items()))
        return ("record" if track == "record" else "non-record"), where
    return ("both", " and ".join(tracks.values())) if tracks else ("", "")


def _track_in(text: str) -> str:
    plain = "".join(char for char in text.lower() if char.isalnum())
    if "nonrecord" in plain or "unlimited" in plain:
        return "non-record"
    return "record" if "10min" in plain or plain in ("record", "trackrecord") else ""


def _readme_says_non_record(folder: Folder) -> bool:
    return _track_in(folder.readme[:4000]) == "non-record"


def training_in_time(folder: Folder) -> Verdict:
    """Training takes at most 600 s on the record track; the step that crosses the cap may finish."""
    claims = [(f"{INFO_NAME} {key}", seconds, 0.0, None) for key, seconds in training_seconds(folder.info)]
    for seed, result in _results(folder).items():
        if isinstance(result, dict):
            claims += [
                (f"{INFO_NAME} seed {seed} {key}", seconds, 0.0, None)
                for key, seconds in training_seconds(result)
            ]
    logs: list[tuple[str, float, float, Log | None]] = [
        (log.name, *log.training, log) for log in folder.logs if log.training
    ]
    if not claims and not logs:
        return "unknown", f"neither {INFO_NAME} nor a log says how long training took"
    where, seconds, _, source = max([*claims, *logs], key=lambda item: item[1] - item[2])
    over = [item for item in (*claims, *logs) if item[1] - item[2] > LIMIT_SECONDS + CAP_GRACE_SECONDS]
    if not over:
        note = (
            ": the step that crosses the cap was finished, as in the published baseline"
            if seconds > LIMIT_SECONDS
            else ""
        )
        return "pass", f"{seconds:,.3f} s ({where}){note}" if note else f"{seconds:,.1f} s ({where})"
    excess = f"{seconds:,.1f} s ({where}), {seconds - LIMIT_SECONDS:,.1f} s over"
    track, source_of_track = track_of(folder)
    if track == "non-record":
        limit = f"the {LIMIT_SECONDS:.0f} s limit is for the record track only ({source_of_track})"
        return "pass", f"{seconds:,.1f} s ({where}); {limit}"
    if track == "both" or _readme_says_non_record(folder):
        return (
            "unknown",
            f"{excess}; {source_of_track or README_NAME} may mean the non-record track, which has no limit",
        )
    if all(log is not None and _is_another_run(log, folder) for _, _, _, log in over):
        return "unknown", f"{excess}; the log seems to be of another run"
    measured = max((log[1] for log in logs), default=0.0)
    if (
        source is None
        and "wallclock" in where
        and 0.9 * LIMIT_SECONDS <= measured <= LIMIT_SECONDS + CAP_GRACE_SECONDS
    ):
        return "unknown", f"{excess}; the logs say {measured:,.1f} s of training"
    return "fail", excess


def evaluation_in_time(folder: Folder) -> Verdict:
    """The evaluation that gives the score takes at most 600 s."""
    claims = [(f"{INFO_NAME} {key}", seconds, True) for key, seconds in evaluation_seconds(folder.info)]
    for seed, result in _results(folder).items():
        if isinstance(result, dict):
            claims += [
                (f"{INFO_NAME} seed {seed} {key}", seconds, True)
                for key, seconds in evaluation_seconds(result)
            ]
    claims += [
        (log.name, *chosen)
        for log in folder.logs
        if (chosen := _scoring_seconds(log, folder)) and not _is_another_run(log, folder)
    ]
    if not claims:
        return "unknown", f"neither {INFO_NAME} nor a log says how long evaluation took"
    where, seconds, certain = max(claims, key=lambda item: (item[1] > LIMIT_SECONDS and item[2], item[1]))
    if seconds <= LIMIT_SECONDS:
        return "pass", f"{seconds:,.1f} s ({where})"
    excess = f"{seconds:,.1f} s ({where}), {seconds - LIMIT_SECONDS:,.1f} s over"
    if not certain:
        return "unknown", f"{excess}; which evaluation gives the score is not stated"
    if track_of(folder)[0] in ("non-record", "both") or _readme_says_non_record(folder):
        return "unknown", f"{excess}; the limit is for eight H100, and this is not of the record track"
    if any(log.processes not in (None, 8) for log in folder.logs):
        return "unknown", f"{excess}; the limit is for eight H100, and a log says another number of processes"
    return "fail", excess


def _scoring_seconds(log: Log, folder: Folder) -> tuple[float, bool] | None:
    """Seconds of the evaluation that gives the declared score, and whether that attribution is certain."""
    if not log.evaluations:
        return None
    wanted = _declared_scores(folder, log)
    scoring = [
        evaluation.seconds
        for evaluation in log.evaluations
        if evaluation.score and any(evaluation.score.agrees(want) for want in wanted)
    ]
    if scoring:
        return max(scoring), True
    if whole := [evaluation.seconds for evaluation in log.evaluations if evaluation.whole]:
        return whole[-1], True
    longest = max(evaluation.seconds for evaluation in log.evaluations)
    return longest, len(log.evaluations) == 1


def no_network(folder: Folder) -> Verdict:
    """The program fetches nothing: it imports no network library and starts no download."""
    program = folder.program
    return _by_code(
        folder, program.network, program.network_possible, "no network library and no download in its text"
    )


def no_training_data(folder: Folder) -> Verdict:
    """Evaluation reads no training data: no function that evaluates reaches it."""
    program = folder.program
    if (
        not program.parsed
        and not program.evaluation
        and (program.training_named or program.unseen or not program.calls)
    ):
        return "unknown", "no function that evaluates was found by its name"
    reason = (
        f"{', '.join(program.evaluation[:4])} lead to no training data"
        if program.evaluation
        else "its text names no training data"
    )
    return _by_code(folder, program.training_data, program.training_possible, reason)


def _by_code(folder: Folder, against: list[str], possible: list[str], reason: str) -> Verdict:
    if folder.program.parsed:
        return "unknown", f"the program cannot be read: {folder.program.parsed}"
    if against:
        return "fail", "; ".join(against[:5])
    if possible:
        return "unknown", f"perhaps: {'; '.join(possible[:3])}"
    if folder.program.unseen:
        return "unknown", f"it runs code that its text does not show: {'; '.join(folder.program.unseen[:3])}"
    return "pass", reason


def seeds_agree(folder: Folder) -> Verdict:
    """Every seed has its result and its log, and val_bpb is their mean."""
    results = _results(folder, exact=True)
    if not results:
        return "unknown", f"{INFO_NAME} has no seed_results"
    scores = [_score_of(result) for result in results.values()]
    figures = [score for score in scores if score is not None]
    if len(figures) < len(scores):
        return "unknown", "seed_results: a seed has no val_bpb"
    named = folder.info.get("seeds")
    if isinstance(named, list) and not all(type(seed) in (int, str, dict) for seed in named):
        return "unknown", f"seeds = {str(named)[:100]} are no numbers"
    plain = [str(seed) for seed in named if not isinstance(seed, dict)] if isinstance(named, list) else []
    if plain and sorted(plain) != sorted(results):
        return "fail", f"seeds = {', '.join(plain)}, seed_results has {', '.join(results)}"[:300]
    without = [seed for seed in results if not any(_seed_key(seed) in log.seeds for log in folder.logs)]
    unnamed = [log.name for log in folder.logs if not log.seeds and not log.is_empty]
    if without and len(unnamed) >= len(without):
        return "unknown", f"no log names the seed {', '.join(without)}, {', '.join(unnamed[:3])} name none"[
            :300
        ]
    if without:
        return "fail", f"no log names the seed {', '.join(without)}"[:300]
    mean, declared = (
        statistics.fmean(score.value for score in figures),
        figure_of(folder.exact.get("val_bpb")),
    )
    if declared is None:
        return "fail", "submission.json has no val_bpb to compare with the seeds"
    coarsest = max(MIN_DIGITS, min(declared.decimals, *(score.decimals for score in figures)))
    if abs(mean - declared.value) > max(
        6e-5, 1.1 * 10.0**-coarsest
    ):  # a mean of figures that are rounded themselves
        if any(score.agrees(declared) for score in figures):
            return "unknown", f"val_bpb = {declared} is that of one seed, the mean is {mean:.5f}"
        return "fail", f"val_bpb = {declared}, the mean over seeds is {mean:.5f}"
    seeds = "seeds" if len(results) > 1 else "seed"
    return "pass", f"{len(results)} {seeds}, mean {mean:.5f}"


def readme_agrees(folder: Folder) -> Verdict:
    """README.md gives the figures of submission.json: val_bpb, and every table row whose first cell is a
    field's name.

    Two figures agree if they are equal after rounding to the digits of the coarser one.
    """
    declared = figure_of(folder.exact.get("val_bpb"))
    if README_NAME in folder.errors or not folder.readme.strip():
        return "fail", folder.errors.get(README_NAME, f"{README_NAME} is empty")
    if declared is None:
        return "fail", "there is no val_bpb to compare with"
    lines = list(short_lines(folder.readme))
    rows = 0
    for line in lines:
        if (row := _field_row(line, folder)) is None:
            continue
        name, cells = row
        rows += 1
        if not _row_agrees(folder.exact[name], cells):
            return "fail", f"{README_NAME} says {name} = {cells[0]}, {INFO_NAME} {folder.info[name]}"[:300]
    if any(
        figure.decimals >= MIN_DIGITS and figure.agrees(declared)
        for line in lines
        for figure in figures_in(line)
    ):
        more = f" and {rows} more figures" if rows else ""
        return "pass", f"val_bpb {declared}{more}"
    scores = [line for line in lines if "bpb" in line.lower() or "bits per byte" in line.lower()]
    if any(figure.decimals >= MIN_DIGITS for line in scores for figure in figures_in(line)):
        return "fail", f"{README_NAME} does not say val_bpb {declared}"
    return "unknown", f"{README_NAME} gives no bits per byte"


def _field_row(line: str, folder: Folder) -> tuple[str, list[str]] | None:
    """The field and the other cells of a table row, if its first cell is a numeric field of submission.json
    in backticks.
    """
    if not (line := line.strip()).startswith("|"):
        return None
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    name = cells[0].strip("*")
    if len(cells) < 2 or not (name.startswith("`") and name.endswith("`")):
        return None
    name = name.strip("`")
    return (name, cells[1:]) if is_number(folder.info.get(name)) and name in folder.exact else None


def _row_agrees(value: Any, cells: list[str]) -> bool:
    """Whether a cell of the row gives the value; a row without plain numbers is no contradiction."""
    want = figure_of(value)
    first = cells[0].replace(",", "").strip("`* ")
    plain = first.replace(".", "", 1).isdecimal()
    if want is None or not plain:
        return True
    for cell in cells:
        words = cell.replace(",", "").replace("`", " ").replace("*", " ").split()
        for word in words:
            head, _, tail = word.partition(".")
            if head.isdecimal() and (tail.isdecimal() or not tail) and len(word) <= 30 and word.isascii():
                figure = Figure(float(word), len(tail))
                if figure.agrees(want) if figure.decimals or want.decimals else figure.value == want.value:
                    return True
    return False


def blob_sound(folder: Folder) -> Verdict:
    """A blob of our format is whole, and holds only finite numbers."""
    if BLOB_NAME not in folder.sizes:
        return "unknown", f"there is no {BLOB_NAME}: another format, or no model in the folder"
    try:
        tensors, _ = unpack(read_bytes(folder.path / BLOB_NAME, SIZE_LIMIT_BYTES))
    except (BlobError, UnreadableError) as error:
        return "fail", str(error)[:300]
    return (
        "pass",
        f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} parameters",
    )


def _number(folder: Folder, name: str) -> float | None:
    value = folder.info.get(name)
    return value if is_number(value) and value > 0 else None


RULES: dict[str, Callable[[Folder], Verdict]] = {
    "files present": files_present,
    "submission.json valid": info_valid,
    "train_gpt.py is Python": script_compiles,
    "bytes as shipped": size_within_limit,
    "bytes as declared": size_as_declared,
    "training time": training_in_time,
    "evaluation time": evaluation_in_time,
    "no network": no_network,
    "no training data at evaluation": no_training_data,
    "seeds": seeds_agree,
    "README's figures": readme_agrees,
    "model.fwz is sound": blob_sound,
}
