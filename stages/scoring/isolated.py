"""Score a blob by a packaged script, isolated: `python -I`, an empty working folder, processes of its own."""

import glob
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from schemas.base import invalid_field
from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError, StageError, first_line
from schemas.evaluate import LoraScores, Score
from schemas.package import ALLOWED_PACKAGES
from schemas.runtime import Progress
from schemas.scoring_settings import ScoringSettings
from stages.processes.launch import run_ranks


@dataclass(frozen=True)
class Scores:
    """What the script said."""

    non_overlapping: Score
    sliding: Score | None
    test_time_training: LoraScores | None = None


_NAME_MISSING = (
    "import importlib.util as found, sys; print(*(n for n in sys.argv[1:] if found.find_spec(n) is None))"
)


def check_isolated(packages: Collection[str] = ALLOWED_PACKAGES) -> None:
    """Raise SpecError where an isolated Python would not find these packages.

    `python -I` ignores PYTHONPATH and the user's own packages. Training would be over when the script fails.
    """
    command = [sys.executable, "-I", "-c", _NAME_MISSING, *sorted(packages)]
    missing = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if missing:
        raise SpecError(
            f"the package is scored by {sys.executable} -I, which ignores PYTHONPATH and does not find "
            f"{', '.join(missing)}: install them into this Python's own environment"
        )


def score_isolated(
    script: Path,
    shards: Sequence[Path],
    tokenizer: Path,
    scoring: ScoringSettings,
    compute: ComputeSettings,
    work_dir: Path,
    progress: Progress,
    timeout: float | None,
    more_options: Sequence[str] = (),
) -> Scores:
    """Run `script --eval` on the blob beside it, with `more_options` too.

    `work_dir` holds its scratch files, which are taken away again.

    Raises StageError for scores that are none; ChildFailedError or TimeoutError as `run_ranks` does.
    """
    empty, links, scores_path = work_dir / "empty", work_dir / "val", work_dir / "scores.json"
    for folder in (empty, links):
        folder.mkdir(exist_ok=True)
    for index, shard in enumerate(shards):
        (links / f"val_{index:06d}.bin").unlink(missing_ok=True)
        (links / f"val_{index:06d}.bin").symlink_to(shard.resolve())
    command = [
        "-I",
        str(script.resolve()),
        "--eval",
        f"--val={glob.escape(str(links))}/val_*.bin",
        f"--tokenizer={tokenizer.resolve()}",
        f"--sequence-length={scoring.sequence_length}",
        f"--stride={scoring.stride}",
        f"--batch-tokens={scoring.batch_tokens}",
        *([f"--windows={scoring.windows}"] if scoring.windows != "stream" else []),
        *([f"--attention-window={scoring.attention_window}"] if scoring.attention_window else []),
        f"--device={compute.device}",
        f"--precision={compute.precision}",
        f"--threads={compute.threads_per_process}",
        f"--json={scores_path}",
        "--progress",
        *more_options,
    ]
    isolated = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    run_ranks(command, work_dir, compute, progress, timeout, env=isolated, cwd=empty)
    scores = read_scores(scores_path)
    for used in (empty, links):
        shutil.rmtree(used)
    return scores


def read_scores(path: Path) -> Scores:
    """What a script left. Raises StageError for anything that is no scores."""
    try:
        told = json.loads(path.read_bytes())
        learned = told.get("test_time_training")
        return Scores(
            Score(**told["non_overlapping"]),
            Score(**told["sliding"]) if told["sliding"] else None,
            LoraScores(**learned) if learned else None,
        )
    except ValidationError as error:
        raise StageError(
            f"{path.name}: the script left scores that are none: {invalid_field(error)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StageError(
            f"{path.name}: the script left no scores that can be read ({first_line(error)})"
        ) from error
