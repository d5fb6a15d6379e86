"""Validation of submission inputs, shared by the command line and the deployment `export`."""

import glob
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from schemas.base import in_our_words
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError
from schemas.submission import About
from stages.store.machine import resolve_precision
from stages.store.runs import choose_run, find_run, list_reports, seeds_of
from stages.store.store import Store
from stages.submission.export import Exported, export_submission


def about_of(author: str, github_id: str, name: str, blurb: str) -> About:
    """The author's details, checked. Raises SpecError that names the option."""
    try:
        return About(author=author, github_id=github_id, name=name, blurb=blurb)
    except ValidationError as error:
        raise SpecError("; ".join(map(_option_in_words, error.errors()))) from error


def _option_in_words(finding: ErrorDetails) -> str:
    option, value = f"--{finding['loc'][0]}".replace("_", "-"), finding["input"]
    return f"{option} = {value!r}: {in_our_words(finding)}" if value else f"{option}: {in_our_words(finding)}"


def write_submission(
    store: Store, run: str, about: About, out: Path | None, only_this_seed: bool
) -> Exported:
    """Write the folder of the run, by default with all seeds of its settings.

    Raises SpecError as `find_run` and `export_submission` do.
    """
    if only_this_seed:
        reports = [report := find_run(store.runs_root(), run, fitting=True)]
    else:
        finished = list_reports(root := store.runs_root())
        report = choose_run(root, finished, run, fitting=True)
        reports = seeds_of(store, report, finished)
    folder = out.expanduser().resolve() if out else store.root / "submissions" / report.name
    return export_submission(store, reports, about, folder)


def compute_of(device: str, processes: int, precision: str) -> ComputeSettings:
    """The compute settings of the options. Raises SpecError that names the option."""
    for option, value, allowed in (
        ("device", device, ("cpu", "cuda")),
        ("precision", precision, ("auto", "bfloat16", "float32")),
    ):
        if value not in allowed:
            raise SpecError(f"--{option} = {value}: must be {' or '.join(allowed)}")
    given: dict[str, Any] = {"device": device, "precision": precision, "num_processes": processes}
    resolved: ComputeSettings = resolve_precision(ComputeSettings(**given))
    return resolved


def shards_of(pattern: str) -> list[Path]:
    """The files that match the pattern. Raises SpecError if no file matches."""
    if not (shards := [Path(path) for path in sorted(glob.glob(pattern))]):
        raise SpecError(
            f"--shards = {pattern}: no file matches. Give the validation shards, for example "
            "'data/fineweb_val_*.bin'"
        )
    return shards


def tokenizer_beside(shards: list[Path]) -> Path:
    """The only *.model in the shards' folder. Raises SpecError if there is none or more than one."""
    models = sorted({path for shard in shards for path in shard.parent.glob("*.model")})
    if len(models) != 1:
        raise SpecError(
            f"--tokenizer: {len(models)} *.model files lie beside the shards; give the SentencePiece "
            "model that made them"
        )
    return models[0]
