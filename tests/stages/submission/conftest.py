"""Folders in the shapes that the official repository's own have, made up."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.submission.rules import check_folder

PROGRAM = '''"""A small model."""
import glob
import os
import subprocess

import numpy as np
import torch
from torch import nn


class Hyperparameters:
    data_path = os.environ.get("DATA_PATH", "./data")
    train_files = os.path.join(data_path, "fineweb_train_*.bin")
    val_files = os.path.join(data_path, "fineweb_val_*.bin")
    seed = int(os.environ.get("SEED", 1337))


def load(file):
    return np.fromfile(file, dtype=np.uint16)


class TokenLoader:
    def __init__(self, pattern):
        self.files = sorted(glob.glob(pattern))

    def next_batch(self):
        return load(self.files[0])


class Linear(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes, bias=False)


def load_validation_tokens(pattern: str):
    return np.concatenate([load(file) for file in sorted(glob.glob(pattern))])


def eval_val(args: Hyperparameters, model: nn.Module, val_tokens):
    model.eval()
    head = Linear(4, 4)
    return head(model(torch.from_numpy(val_tokens)))


def main():
    args = Hyperparameters()
    train_loader = TokenLoader(args.train_files)
    print(subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout)
    model = torch.compile(nn.Embedding(8, 4))
    for _ in range(10):
        model(train_loader.next_batch()).sum().backward()
    print(f"val_bpb:{eval_val(args, model, load_validation_tokens(args.val_files))}")


if __name__ == "__main__":
    main()
'''


def run_log(
    seed: int = 1337,
    total: int = 15_900_000,
    score: float = 1.2345,
    seconds: float = 599.9,
    code: int = 50_000,
) -> str:
    """What the baseline prints, shortened: sizes before and after compression, a diagnostic and the final
    evaluation.
    """
    return "\n".join(
        [
            "world_size:8 grad_accum_steps:1",
            f"train_batch_tokens:524288 iterations:20000 max_wallclock_seconds:600.000 seed:{seed}",
            "step:0/20000 val_loss:6.9297 val_bpb:4.1042 train_time:0ms step_avg:0.02ms",
            (
                f"step:6840/20000 val_loss:1.9228 val_bpb:1.1388 train_time:{1000 * seconds:.0f}ms "
                "step_avg:87.74ms"
            ),
            f"stopping_early: wallclock_cap train_time:{1000 * seconds:.0f}ms step:6840/20000",
            "DIAGNOSTIC post_ema val_loss:1.9230 val_bpb:1.1389 eval_time:1997ms",
            "Serialized model: 106161590 bytes",
            f"Code size: {code} bytes",
            f"Total submission size: {106161590 + code} bytes",
            f"Serialized model int6+lzma: {total - code} bytes",
            f"Total submission size int6+lzma: {total} bytes",
            f"final_int6_sliding_window val_loss:2.0 val_bpb:{score:.4f} stride:64 eval_time:231557ms",
            f"final_int6_sliding_window_exact val_loss:2.00000000 val_bpb:{score:.8f}",
            "",
        ]
    )


@pytest.fixture
def log() -> Callable[..., str]:
    return run_log


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., dict[str, tuple[str, str]]]:
    """Writes a folder and gives rule → verdict and reason.

    `files` replace or add to a sound folder's; None leaves one out.
    """

    def judged(
        info: dict[str, Any] | None = None, place: str = "folder", **files: Any
    ) -> dict[str, tuple[str, str]]:
        folder = tmp_path / place
        shutil.rmtree(folder, ignore_errors=True)
        given = {
            "author": "A. Tester",
            "github_id": "tester",
            "name": "A case",
            "val_bpb": 1.2345,
            "bytes_total": 15_900_000,
        }
        written: dict[str, Any] = {
            "README.md": "# A case\n\nval_bpb 1.2345\n",
            "submission.json": json.dumps(
                {key: value for key, value in (given | (info or {})).items() if value is not ...}
            ),
            "train.log": run_log(),
            "train_gpt.py": PROGRAM,
            **files.pop("more", {}),
            **{name.replace("__", "."): content for name, content in files.items()},
        }
        for name, content in written.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return {rule.rule: (rule.verdict, rule.reason) for rule in check_folder(folder)}

    return judged


@pytest.fixture
def program() -> str:
    return PROGRAM
