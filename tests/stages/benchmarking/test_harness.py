"""lm-evaluation-harness with a model of ours: local tasks, names, refusals, and generated text."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from lm_eval.api.instance import Instance

from schemas.benchmark import BenchmarkSpec
from schemas.errors import SpecError
from schemas.model_settings import ModelSettings
from schemas.sample import SamplingSettings
from schemas.scoring_settings import ScoringSettings
from schemas.tokenize_corpus import TokenizerSpec
from stages.benchmarking.harness import load_tasks, measure
from stages.benchmarking.likelihood import TokenScorer
from stages.benchmarking.lm import FairwayLM
from stages.core.bits_per_byte import load_token_bytes
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.scoring import score
from stages.core.shards import BOS_ID, ShardWriter
from stages.sampling.generator import Generator
from stages.store.workspace import no_progress
from stages.tokenization.tokenizer import train_tokenizer

LENGTH = 32
WORDS = ("the", "state", "of", "our", "union", "is", "strong", "and", "free", "men", "know", "that", "it")
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 400))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer(TokenizerSpec(vocab_size=290), [TEXT]))
    return path


@pytest.fixture
def model(tiny_model: ModelSettings, tiny_state: dict[str, Tensor]) -> GPT:
    model = GPT(tiny_model)
    model.load_state_dict(tiny_state)
    return model.eval()


@pytest.fixture
def lm(model: GPT, tokenizer: Path) -> FairwayLM:
    scorer = TokenScorer(model, LENGTH, 256, torch.float32)
    pieces = SentencePieceProcessor(model_file=str(tokenizer))
    return FairwayLM(scorer, Generator(model, pieces, LENGTH), no_progress)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tasks; data files are relative to it, as in the stage's process."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "text.jsonl").write_text(json.dumps({"page": TEXT}) + "\n", encoding="utf-8")
    rows = [{"start": "the state of our", "ends": ["union", "men"], "right": n % 2} for n in range(6)]
    (folder / "ends.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    local = "dataset_path: json\ntest_split: test\n"
    (folder / "text.yaml").write_text(
        f"task: own_text\n{local}dataset_kwargs: {{data_files: {{test: text.jsonl}}}}\n"
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{page}}"\n'
        "metric_list:\n  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}\n"
        "metadata: {version: 2.0}\n",
        encoding="utf-8",
    )
    (folder / "ends.yaml").write_text(
        f"task: own_ends\n{local}dataset_kwargs: {{data_files: {{test: ends.jsonl}}}}\n"
        'output_type: multiple_choice\ndoc_to_text: "{{start}}"\ndoc_to_choice: "{{ends}}"\n'
        "doc_to_target: right\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n",
        encoding="utf-8",
    )
    return folder


def spec(*tasks: str, **others: Any) -> BenchmarkSpec:
    return BenchmarkSpec(tasks=tasks, sequence_length=LENGTH, batch_tokens=256, **others)


def test_bits_per_byte_of_a_local_task_are_those_of_evaluation(
    lm: FairwayLM, model: GPT, tokenizer: Path, own: Path, tmp_path: Path
) -> None:
    [found] = measure(lm, load_tasks(["own_text"], own), spec("own_text"))
    with ShardWriter(tmp_path, "val") as writer:
        writer.write(np.array([BOS_ID, *lm.tok_encode(TEXT)]))
    windows = ScoringSettings(sequence_length=LENGTH, stride=0, batch_tokens=256)
    stream, table = TokenStream(writer.paths), load_token_bytes(tokenizer)
    ours = score(model, stream, table, windows, LENGTH, torch.float32)
    [metric] = found.metrics
    assert (found.task, found.version, found.num_documents, metric.name) == (
        "own_text",
        "2.0",
        1,
        "bits_per_byte",
    )
    assert metric.value == pytest.approx(ours.bpb, abs=1e-4)
    assert ours.num_bytes == len(TEXT.encode())


def test_choices_are_weighed_by_their_likelihood(lm: FairwayLM, own: Path) -> None:
    asked = spec("own_ends", limit=4)
    [found] = measure(lm, load_tasks(["own_ends"], own), asked)
    likelihoods = [
        lm.loglikelihood([Instance("loglikelihood", {}, ("the state of our", f" {end}"), 0)])[0][0]
        for end in ("union", "men")
    ]
    right = sum(int(np.argmax(likelihoods)) == n % 2 for n in range(4)) / 4
    assert (found.num_documents, found.num_available) == (4, 6)
    assert [(item.name, item.value, item.higher_is_better) for item in found.metrics] == [
        ("acc", right, True)
    ]


def test_a_pattern_names_several_tasks(own: Path) -> None:
    assert [task.task_name for task in load_tasks(["own_*"], own)] == ["own_ends", "own_text"]


def test_a_group_has_its_own_figure_and_its_tasks_are_not_asked_twice(lm: FairwayLM, own: Path) -> None:
    ends = (own / "ends.yaml").read_text(encoding="utf-8")
    (own / "more.yaml").write_text(ends.replace("own_ends", "own_more") + "tag: own_tag\n", encoding="utf-8")
    (own / "group.yaml").write_text(
        "group: own_group\ntask: [own_ends, own_more]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n",
        encoding="utf-8",
    )
    found = {item.task: item for item in measure(lm, load_tasks(["own_group"], own), spec("own_group"))}
    assert set(found) == {"own_group", "own_ends", "own_more"}
    whole, part = (found[name].metrics[0].value for name in ("own_group", "own_ends"))
    assert (found["own_group"].num_documents, whole) == (None, part)
    assert [task.task_name for task in load_tasks(["own_tag"], own)] == ["own_more"]
    with pytest.raises(SpecError, match="has the task own_ends, as own_group has"):
        load_tasks(["own_group", "own_ends"], own)


def test_a_text_ends_where_the_task_says(lm: FairwayLM, model: GPT) -> None:
    def written(**how: Any) -> str:
        request = Instance("generate_until", {}, ("the state", {"until": [], **how}), 0)
        return lm.generate_until([request])[0]

    start = lm.tok_encode("the state")
    generator = Generator(model, lm._generator.tokenizer, LENGTH)
    [ids] = generator.continue_tokens([[BOS_ID, *start]], SamplingSettings(tokens=40, temperature=0))
    greedy = generator.text_after(start, ids)
    assert written(max_gen_toks=40) == greedy
    assert len(greedy) > 4
    assert written(max_gen_toks=40, until=[greedy[3:5]]) == greedy[: greedy.index(greedy[3:5])]
    assert written(max_gen_toks=40, do_sample=True, temperature=1.0) != greedy


def test_tasks_that_cannot_be_asked_are_refused_by_name(own: Path, tmp_path: Path) -> None:
    text = (own / "text.yaml").read_text(encoding="utf-8")
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"page": "x"}\n', encoding="utf-8")
    for name, old, new in (
        ("outside", "text.jsonl", str(outside)),
        ("gone", "text.jsonl", "gone.jsonl"),
        ("unsafe", "metadata:", "unsafe_code: true\nmetadata:"),
    ):
        changed = text.replace("own_text", f"own_{name}").replace(old, new)
        (own / f"{name}.yaml").write_text(changed, encoding="utf-8")
    for name, reason in (
        ("own_outside", r"outside\.jsonl, which lies outside of"),
        ("own_gone", "cannot be loaded: FileNotFoundError"),
        ("own_unsafe", "runs programs that the model writes"),
    ):
        with pytest.raises(SpecError, match=f"tasks = {name}: .*{reason}"):
            load_tasks([name], own)


def test_a_figure_that_is_no_number_is_none(lm: FairwayLM, own: Path) -> None:
    text = (own / "text.yaml").read_text(encoding="utf-8").replace("bits_per_byte", "word_perplexity")
    (own / "text.yaml").write_text(
        text.replace("aggregation: word_perplexity", "aggregation: weighted_perplexity"), encoding="utf-8"
    )
    [found] = measure(lm, load_tasks(["own_text"], own), spec("own_text"))
    [metric] = found.metrics
    assert metric.stderr is None
    assert metric.value is None or math.isfinite(metric.value)
