"""Rules on claims: submission.json is whole, the seeds give its score, and README.md repeats it."""

import statistics
from typing import Any

from schemas.submission import INFO_NAME, README_NAME
from stages.submission.figures import MIN_DIGITS, Figure, figure_of, figures_in, is_number, number_of
from stages.submission.folder import Folder, Verdict, positive_number, results_of, score_of, seed_key
from stages.submission.untrusted import short_lines

# What must be there, and the keys under which it stands too. The repository asks for "your name, GitHub ID,
# val_bpb".
REQUIRED_TEXT = {
    "author": ("name", "authors"),
    "github_id": ("github", "github_username", "github_user", "github_handle"),
}
SCORES = ("val_bpb_mean", "mean_val_bpb", "final_val_bpb", "val_bpb_exact", "bpb")


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
    if not positive_number(folder, "val_bpb"):
        means = [key for key in SCORES if positive_number(folder, key)] if info.get("val_bpb") is None else []
        (perhaps if means else wrong).append(
            f"val_bpb is missing; {means[0]} may be meant" if means else "val_bpb is no positive number"
        )
    for name in ("val_loss", "bytes_total", "bytes_code"):
        if info.get(name) is not None and number_of(info[name]) is None:
            wrong.append(f"{name} is no positive number")
    if wrong or perhaps:
        return ("fail" if wrong else "unknown"), "; ".join([*wrong, *perhaps])
    return "pass", f"val_bpb {info['val_bpb']} by {info['github_id']}"[:200]


def seeds_agree(folder: Folder) -> Verdict:
    """Every seed has its result and its log, and val_bpb is their mean."""
    results = results_of(folder, exact=True)
    if not results:
        return "unknown", f"{INFO_NAME} has no seed_results"
    scores = [score_of(result) for result in results.values()]
    figures = [score for score in scores if score is not None]
    if len(figures) < len(scores):
        return "unknown", "seed_results: a seed has no val_bpb"
    named = folder.info.get("seeds")
    if isinstance(named, list) and not all(type(seed) in (int, str, dict) for seed in named):
        return "unknown", f"seeds = {str(named)[:100]} are no numbers"
    plain = [str(seed) for seed in named if not isinstance(seed, dict)] if isinstance(named, list) else []
    if plain and sorted(plain) != sorted(results):
        return "fail", f"seeds = {', '.join(plain)}, seed_results has {', '.join(results)}"[:300]
    without = [seed for seed in results if not any(seed_key(seed) in log.seeds for log in folder.logs)]
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
