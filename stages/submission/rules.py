"""The published rules as code, for any submission folder of the official repository's shape: `fairway check FOLDER`.

Nothing of the folder is executed. Each rule gives pass, fail or unknown, and a reason. Sources: the repository's README, sections
FAQ and Submission Process.
"""

import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal, TypeGuard

from schemas.check_size import SIZE_LIMIT_BYTES
from schemas.package import BLOB_NAME, SCRIPT_NAME
from schemas.submission import INFO_NAME, LIMIT_SECONDS, README_NAME, REQUIREMENTS_NAME, RuleResult
from stages.core.packing import BlobError, unpack
from stages.submission.static_code import Findings, inspect_program
from stages.submission.strangers import (
    SOURCE_LIMIT_BYTES,
    UnreadableError,
    list_files,
    read_bytes,
    read_json_object,
    read_text,
    short_lines,
)

REQUIRED_TEXT = ("author", "github_id", "name")
REQUIRED_NUMBERS = ("val_bpb",)
CAP_GRACE_SECONDS = 1.0
LOGS_LIMIT_BYTES = 256 * 2**20
_TRAIN_KEYS = (
    "wallclock_seconds",
    "training_time_seconds",
    "train_time_seconds",
    "train_seconds",
    "training_seconds",
    "train_wallclock_seconds",
)
_EVAL_KEYS = ("eval_time_seconds", "eval_seconds", "evaluation_seconds", "eval_wallclock_seconds")
_TRAIN_TIME = re.compile(r"\btrain_time:(\d+(?:\.\d+)?)ms|\btrained \d+ steps in (\d+(?:\.\d+)?) s\b")
_EVAL_TIME = re.compile(r"\beval_time:(\d+(?:\.\d+)?)ms|\bval_bpb_\w+ .* in (\d+(?:\.\d+)?) s$")
_DECIMAL = re.compile(r"(?<![\w.,])\d+\.(\d{3,})(?![\w.]*\d)")
_README_ROW = re.compile(r"\|\s*`(\w+)`\s*\|\s*([^|]*?)\s*\|")
_DOCUMENTS = (".md", ".log", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".png", ".jpg", ".jpeg", ".svg", ".pdf", ".html")


@dataclass
class Folder:
    """What could be read of a folder. `errors` says why a part could not."""

    path: Path
    sizes: dict[str, int] = field(default_factory=dict)  # plain files only
    odd: list[str] = field(default_factory=list)  # links, pipes, devices
    info: dict[str, Any] = field(default_factory=dict)
    readme: str = ""
    logs: dict[str, str] = field(default_factory=dict)
    program: Findings = field(default_factory=Findings)
    errors: dict[str, str] = field(default_factory=dict)


Verdict = tuple[Literal["pass", "fail", "unknown"], str]


def check_folder(path: Path) -> list[RuleResult]:
    """Every rule applied to the folder. Raises SpecError when it is no folder that can be read."""
    folder, results = _read(path), []
    for name, rule in RULES.items():
        verdict, reason = rule(folder)
        results.append(RuleResult(rule=name, verdict=verdict, reason=reason))
    return results


def _read(path: Path) -> Folder:
    folder = Folder(path)
    try:
        found = list_files(path)
    except UnreadableError as error:
        folder.errors["files"], folder.program = str(error), Findings(parsed=str(error))
        return folder
    folder.sizes = {name: about.st_size for name, about in found.items() if S_ISREG(about.st_mode)}
    folder.odd = [name for name in found if name not in folder.sizes]

    def attempt(name: str, action: Callable[[], Any], default: Any) -> Any:
        try:
            return action()
        except UnreadableError as error:
            folder.errors[name] = str(error)
            return default

    folder.info = attempt(INFO_NAME, lambda: read_json_object(path / INFO_NAME), {})
    folder.readme = attempt(README_NAME, lambda: read_text(path / README_NAME), "")
    source = attempt(SCRIPT_NAME, lambda: read_bytes(path / SCRIPT_NAME, SOURCE_LIMIT_BYTES), None)
    folder.program = inspect_program(source) if source is not None else Findings(parsed=folder.errors[SCRIPT_NAME])
    room = LOGS_LIMIT_BYTES
    for name in filter(_is_log, folder.sizes):
        if (room := room - folder.sizes[name]) < 0:
            folder.errors[name] = f"{name} is left out: the logs together have more than {LOGS_LIMIT_BYTES:,} bytes"
            continue
        content = attempt(name, partial(read_bytes, path / name), b"")
        folder.logs[name] = content.decode("utf-8", "replace")
    return folder


def _is_log(name: str) -> bool:
    base = name.rpartition("/")[2].lower()
    return base.endswith(".log") or (base.endswith(".txt") and base != REQUIREMENTS_NAME)


def files_present(folder: Folder) -> Verdict:
    """README.md, submission.json, a train log and train_gpt.py; plain files, all of them."""
    if "files" in folder.errors:
        return "fail", folder.errors["files"]
    missing = [name for name in (README_NAME, INFO_NAME, SCRIPT_NAME) if not folder.sizes.get(name)]
    missing += [] if any(text.strip() for text in folder.logs.values()) else ["a train log (*.log or *.txt)"]
    if missing:
        return "fail", f"missing or empty: {', '.join(missing)}"
    if folder.odd:
        return "fail", f"links or special files: {', '.join(folder.odd[:5])}"
    return "pass", f"{len(folder.sizes)} files, {len(folder.logs)} of them logs"


def info_valid(folder: Folder) -> Verdict:
    """submission.json is JSON with author, GitHub account, name and val_bpb of sound types."""
    if INFO_NAME in folder.errors:
        return "fail", folder.errors[INFO_NAME]
    wrong = [f"{name} is no text" for name in REQUIRED_TEXT if not isinstance(folder.info.get(name), str) or not folder.info[name].strip()]
    wrong += [f"{name} is no positive number" for name in REQUIRED_NUMBERS if not _number(folder, name)]
    for name in ("val_loss", "bytes_total", "bytes_code"):
        if name in folder.info and not _number(folder, name):
            wrong.append(f"{name} is no positive number")
    return ("fail", "; ".join(wrong)) if wrong else ("pass", f"val_bpb {folder.info['val_bpb']} by {folder.info['github_id']}"[:200])


def script_compiles(folder: Folder) -> Verdict:
    """train_gpt.py is Python. It is read, not run."""
    if folder.program.parsed:
        return "fail", folder.program.parsed
    return "pass", f"Python{f', unpacked {folder.program.layers} times' if folder.program.layers else ''}; read, not run"


def size_within_limit(folder: Folder) -> Verdict:
    """Code and compressed model together have at most 16,000,000 bytes, as shipped."""
    shipped = {name: size for name, size in folder.sizes.items() if not name.lower().endswith(_DOCUMENTS)}
    total, where = sum(shipped.values()), f"{len(shipped)} files that are no documents"
    if not any(not name.endswith(".py") for name in shipped):
        told = _number(folder, "bytes_total")
        if told is None:
            return "unknown", f"no model lies in the folder, and {INFO_NAME} has no bytes_total; code alone {total:,} bytes"
        total, where = math.ceil(told), f"as {INFO_NAME} says; the model is not in the folder"
    margin = SIZE_LIMIT_BYTES - total
    said = f"{total:,} bytes ({where}), {abs(margin):,} {'to spare' if margin >= 0 else 'over the limit'}"
    return ("pass" if margin >= 0 else "fail"), said


def size_as_declared(folder: Folder) -> Verdict:
    """bytes_code and bytes_total are those of the files."""
    code, declared = folder.sizes.get(SCRIPT_NAME), _number(folder, "bytes_code")
    if declared is None or code is None:
        return "unknown", f"{INFO_NAME} has no bytes_code" if code is not None else f"no {SCRIPT_NAME}"
    if declared != code:
        return "fail", f"bytes_code = {declared:,.0f}, {SCRIPT_NAME} has {code:,}"
    total, blob = _number(folder, "bytes_total"), folder.sizes.get(BLOB_NAME)
    if blob is None or total is None:
        return "pass", f"bytes_code = {code:,}; the model is not in the folder"
    return ("pass" if total == code + blob else "fail"), f"bytes_total = {total:,.0f}, the files have {code + blob:,}"


def training_in_time(folder: Folder) -> Verdict:
    """Training takes at most 600 s; the step that crosses the cap may end."""
    return _in_time(folder, "training", _TRAIN_KEYS, _TRAIN_TIME, max)


def evaluation_in_time(folder: Folder) -> Verdict:
    """Evaluation takes at most 600 s."""
    return _in_time(folder, "evaluation", _EVAL_KEYS, _EVAL_TIME, sum)


def _in_time(folder: Folder, what: str, keys: tuple[str, ...], pattern: re.Pattern, together: Callable[[list[float]], float]) -> Verdict:
    claims = {f"{INFO_NAME} {key}": value for key in keys if (value := _number(folder, key)) is not None}
    for name, text in folder.logs.items():
        found = [match.groups() for line in short_lines(text) if (match := pattern.search(line))]
        times = [float(milliseconds) / 1000 if milliseconds else float(seconds) for milliseconds, seconds in found]
        if times:
            claims[name] = together(times)
    if not claims:
        return "unknown", f"neither {INFO_NAME} nor a log says how long {what} took"
    where, seconds = max(claims.items(), key=lambda item: item[1])
    if seconds <= LIMIT_SECONDS:
        return "pass", f"{seconds:,.1f} s ({where})"
    if what == "training" and seconds <= LIMIT_SECONDS + CAP_GRACE_SECONDS:
        return "pass", f"{seconds:,.3f} s ({where}): the step that crosses the cap was finished, as in the published baseline"
    return "fail", f"{seconds:,.1f} s ({where}), {seconds - LIMIT_SECONDS:,.1f} s over"


def no_network(folder: Folder) -> Verdict:
    """Nothing is fetched: no network library is imported, no download is started."""
    return _by_code(folder, folder.program.network, "no network library and no download in its text")


def no_training_data(folder: Folder) -> Verdict:
    """Evaluation reads no training data: no function that evaluates leads to it."""
    findings = folder.program
    if not findings.parsed and not findings.evaluation:
        return "unknown", "no function that evaluates was found by its name"
    return _by_code(folder, findings.training_data, f"{', '.join(findings.evaluation[:4])} lead to no training data")


def _by_code(folder: Folder, against: list[str], said: str) -> Verdict:
    if folder.program.parsed:
        return "unknown", f"the program cannot be read: {folder.program.parsed}"
    if against:
        return "fail", "; ".join(against[:5])
    if folder.program.unseen:
        return "unknown", f"it runs what its text does not show: {'; '.join(folder.program.unseen[:3])}"
    return "pass", said


def seeds_agree(folder: Folder) -> Verdict:
    """Every seed has its result and its log, and val_bpb is their mean."""
    results = folder.info.get("seed_results")
    if not isinstance(results, dict) or not results:
        return "unknown", f"{INFO_NAME} has no seed_results"
    scores = [item.get("val_bpb") if isinstance(item, dict) else item for item in results.values()]
    numbers = [score for score in scores if _is_number(score)]
    if len(numbers) < len(scores):
        return "fail", "seed_results: a seed has no val_bpb"
    named = folder.info.get("seeds")
    if isinstance(named, list) and sorted(map(str, named)) != sorted(results):
        return "fail", f"seeds = {named}, seed_results has {', '.join(results)}"[:300]
    without = [
        seed
        for seed in results
        if not any(re.search(rf"(?<!\d){re.escape(seed)}(?!\d)", name + text[:4000]) for name, text in folder.logs.items())
    ]
    if without:
        return "fail", f"no log names the seed {', '.join(without)}"[:300]
    mean, told = statistics.fmean(numbers), _number(folder, "val_bpb")
    if told is None or abs(mean - told) > 6e-5:  # half of the last of four digits, as val_bpb is usually given
        return "fail", f"val_bpb = {told}, the mean over seeds is {mean:.5f}"
    return "pass", f"{len(results)} seed{'s' if len(results) > 1 else ''}, mean {mean:.5f}"


def readme_agrees(folder: Folder) -> Verdict:
    """README.md says the figures of submission.json: its val_bpb, and every row of a table whose first cell is a field's name."""
    told = _number(folder, "val_bpb")
    if not folder.readme.strip() or told is None:
        return "fail", folder.errors.get(
            README_NAME, f"{README_NAME} is empty" if not folder.readme.strip() else "there is no val_bpb to compare with"
        )
    lines = list(short_lines(folder.readme))
    rows = [match.groups() for line in lines if (match := _README_ROW.match(line)) and match[1] in folder.info]
    for name, said in rows:
        if said.replace(",", "").strip("`* ") != str(folder.info[name]):
            return "fail", f"{README_NAME} says {name} = {said}, {INFO_NAME} {folder.info[name]}"[:300]
    figures = [(float(match[0]), len(match[1])) for line in lines for match in _DECIMAL.finditer(line)]
    if not any(abs(value - told) <= 0.5000001 * 10**-digits for value, digits in figures):
        return "fail", f"{README_NAME} nowhere says val_bpb {told}"
    return "pass", f"val_bpb {told}{f' and {len(rows)} more figures' if rows else ''}"


def blob_sound(folder: Folder) -> Verdict:
    """A blob of our format is whole, and holds only finite numbers."""
    if BLOB_NAME not in folder.sizes:
        return "unknown", f"there is no {BLOB_NAME}: another format, or no model in the folder"
    try:
        tensors, _ = unpack(read_bytes(folder.path / BLOB_NAME, SIZE_LIMIT_BYTES))
    except (BlobError, UnreadableError) as error:
        return "fail", str(error)[:300]
    return "pass", f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} parameters"


def _number(folder: Folder, name: str) -> float | None:
    value = folder.info.get(name)
    return value if _is_number(value) and value > 0 else None


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < 1e15 and math.isfinite(value)


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
