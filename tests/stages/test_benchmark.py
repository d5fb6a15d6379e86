"""What the key of a benchmark covers."""

from typing import Any

import pytest

from schemas.benchmark import BenchmarkedModel, BenchmarkSpec, OwnTasks
from schemas.compute_settings import ComputeSettings
from schemas.files import FileRef, SourceFile
from schemas.model_settings import ModelSettings
from schemas.stages import KNOWN_STAGES
from stages.store import source
from stages.store.keys import stage_key

STAGE = KNOWN_STAGES["benchmark"]


def key(path: str = "stages/package/a/model.fwz", sha256: str = "1" * 64, **changed: Any) -> str:
    spec = {"tasks": ("hellaswag",), "sequence_length": 64, "batch_tokens": 4096}
    compute = ComputeSettings(precision="float32")
    model = BenchmarkedModel(
        weights="packed",
        file=FileRef(path=path, num_bytes=1, sha256=sha256),
        model=ModelSettings(),
        tokenizer=SourceFile(path="/tokenizer.model", num_bytes=1, sha256="2" * 64),
    )
    asked = BenchmarkSpec(**{**spec, "compute": compute, **changed})
    return stage_key(STAGE, asked, {"model": model, "own_tasks": OwnTasks()})


def test_what_changes_a_figure_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    assert key(path="stages/package/b/model.fwz") == before  # the same bytes elsewhere
    assert key(tasks=(" hellaswag", "hellaswag ")) == before
    others = [
        key(sha256="3" * 64),
        key(limit=200),
        key(num_fewshot=5),
        key(tasks=("hellaswag", "lambada_openai")),
        key(sequence_length=128),
    ]
    monkeypatch.setattr(source, "library_version", lambda name: "0.9" if name == "lm_eval" else "1")
    others.append(key())
    assert len({before, *others}) == 7
