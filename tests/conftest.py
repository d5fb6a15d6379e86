"""Shared fixtures: a tiny tokenized corpus and a workspace, made without the tokenize stage.

Before anything imports torch, threads are told to wait at barriers instead of spinning: tests beside other
work stay fast.
"""

import hashlib
import json
import os
import shutil

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file
from xdist.scheduler import LoadFileScheduling

from presets import load_preset
from schemas.evaluate import Score
from schemas.files import SourceFile
from schemas.merge import MergedModel
from schemas.model_settings import ModelSettings
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import SplitCounts, TokenizedCorpus
from schemas.train_settings import TrainSettings
from stages.core.model import GPT
from stages.core.shards import ShardWriter
from stages.store.hashing import FileHashes
from stages.store.machine import resolve_precision
from stages.store.workspace import Workspace

settings.register_profile("fairway", deadline=None)  # a busy machine makes any single example slow
settings.load_profile("fairway")

# The files of each of these share a real run, and in tests/flows a Prefect server: minutes for each worker
# that would make its own.
ON_ONE_WORKER = ("tests/flows/", "tests/faults/")
# They take longest; begun last, they would leave the other worker idle.
FIRST = (*ON_ONE_WORKER, "tests/surroundings/", "tests/docs/")


class ByFile(LoadFileScheduling):
    """Every file on one worker, in the order of collection; some folders wholly on one."""

    def _split_scope(self, nodeid: str) -> str:
        whole = next((folder for folder in ON_ONE_WORKER if nodeid.startswith(folder)), None)
        return whole or super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """`--dist loadfile`, but for `make faults`, whose hundreds of strikes two workers share by file."""
    if config.getvalue("dist") != "loadfile" or os.environ.get("FAIRWAY_FAULTS") == "full":
        return None
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((n for n, folder in enumerate(FIRST) if item.nodeid.startswith(folder)), len(FIRST))

    items.sort(key=place)


# No page may reach another machine, and the browser itself asks none.
BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, for tests with the marker `ui`."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=BROWSER)
        yield running
        running.close()


TINY_MODEL = ModelSettings(
    vocab_size=300,
    num_layers=3,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_hidden=48,
    rope_dims=4,
    xsa_layers=1,
    value_embedding_dim=8,
    value_embedding_layers=(2,),
)


@pytest.fixture
def figure() -> Callable[..., None]:
    """`figure("1", "what was done", "the figure", met)`: for the table, and an assertion."""

    def tell(line: str, done: str, value: str, met: bool) -> None:
        if path := os.environ.get("FAIRWAY_FAULTS_OUT"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps(
                        {"line": line, "done": done, "figure": value, "met": bool(met)}, ensure_ascii=False
                    )
                    + "\n"
                )
        assert met, f"{done}: {value}"

    return tell


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[..., Workspace]:
    """Makes the workspace of a stage, all in one store; what it writes can be read by the next one at
    once.
    """

    def make(name: str = "stage") -> Workspace:
        published_as = PurePosixPath("stages", name)
        out_dir = tmp_path / "store" / published_as
        out_dir.mkdir(parents=True)
        return Workspace(tmp_path / "store", out_dir, published_as, RunOptions(), FileHashes(None))

    return make


@pytest.fixture
def smoke_training() -> TrainSettings:
    """The smoke preset's training, twelve steps long."""
    settings: TrainSettings = resolve_precision(load_preset("smoke").with_qat_grid().train)
    return replace(settings, schedule=replace(settings.schedule, max_steps=12))


@pytest.fixture(scope="session")
def tiny_tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenizedCorpus:
    """Shards of 20,000 and 700 tokens, ids below 294, that a model can learn something from, and no real
    tokenizer.
    """
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(b"not read by training")
    generator = np.random.default_rng(0)
    shards, counts = {}, {}
    for split, num_tokens in (("train", 20_000), ("val", 700)):
        tokens = (4 + 290 * generator.random(num_tokens) ** 4).astype(np.uint16)
        tokens[::100] = 1
        with ShardWriter(folder, split, 10_000) as writer:
            writer.write(tokens)
        shards[split] = tuple(_source_file(path) for path in writer.paths)
        counts[split] = SplitCounts(
            num_documents=num_tokens // 100,
            num_tokens=num_tokens,
            num_bos=num_tokens // 100,
            utf8_bytes=None,
            normalized_utf8_bytes=None,
        )
    reference = _source_file(tokenizer)
    return TokenizedCorpus(
        tokenizer=reference,
        tokenizer_sha256=reference.sha256,
        vocab_size=320,
        bos_id=1,
        train_shards=shards["train"],
        val_shards=shards["val"],
        train=counts["train"],
        val=counts["val"],
    )


@pytest.fixture
def tiny_model() -> ModelSettings:
    """The smallest model with every technique on."""
    return TINY_MODEL


@pytest.fixture
def tiny_state() -> dict[str, torch.Tensor]:
    """Weights of TINY_MODEL, as if trained a little: nothing is all zeros any more."""
    generator = torch.Generator().manual_seed(0)
    state = GPT(TINY_MODEL).state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.1 + (tensor.dim() < 2)
        for name, tensor in state.items()
    }


@pytest.fixture
def tiny_merged(make_workspace: Callable[..., Workspace], tiny_state: dict[str, torch.Tensor]) -> MergedModel:
    """The record of a merge stage whose model is `tiny_state`."""
    work = make_workspace("merge")
    path = work.out_dir / "model.safetensors"
    save_file(tiny_state, path)
    score = Score(
        bpb=1.0,
        loss=1.0,
        nll_nats_sum=1.0,
        num_targets=1,
        num_bytes=1,
        num_bos_targets=0,
        bos_nats_sum=0.0,
        seconds=0.0,
    )
    return MergedModel(
        model=TINY_MODEL,
        weights=work.ref(path),
        method="swa",
        steps=(1,),
        lr_scales=(0.1,),
        num_with_qat=0,
        distance_from_last=0.0,
        last=score,
        score=score,
    )


def _source_file(path: Path) -> SourceFile:
    content = path.read_bytes()
    return SourceFile(path=str(path), num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
