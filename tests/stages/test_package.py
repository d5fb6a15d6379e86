import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from schemas.compute_settings import ComputeSettings
from schemas.errors import SpecError, StageError
from schemas.evaluate import EvaluateSpec, LoraScores
from schemas.lora_recipe import LoraRecipe
from schemas.lora_settings import LoraSettings
from schemas.merge import MergedModel
from schemas.package import Package, PackageSpec
from schemas.quantize import PackedModel
from schemas.quantizer_settings import CalibrationSettings, Ecsq, GptqLite
from schemas.scoring_settings import ScoringSettings
from schemas.tensor_formats import FormatRule
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train_settings import TrainSettings
from stages.core.bits_per_byte import load_token_bytes
from stages.core.loader import TokenStream
from stages.core.lora import score_learning
from stages.core.program import load_packed_model
from stages.core.scoring import score
from stages.core.shards import ShardWriter
from stages.evaluate import evaluate
from stages.package import package
from stages.packaging.script import check_imports
from stages.quantize import quantize
from stages.store.workspace import DamagedFileError, Workspace

MakeWorkspace = Callable[..., Workspace]
LORA = LoraSettings(on=True, rank=4, chunk_tokens=32)
CODED = Ecsq(
    rules=(FormatRule("*.weight", "int8"), FormatRule("*", "fp32")),
    calibration=CalibrationSettings(num_sequences=16, sequence_length=32, batch_sequences=8),
)


@pytest.fixture
def packed(
    tiny_merged: MergedModel, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> PackedModel:
    return quantize(GptqLite(), tiny_merged, tiny_tokens, make_workspace("quantize"))


@pytest.fixture
def either(
    request: pytest.FixtureRequest,
    tiny_merged: MergedModel,
    tiny_tokens: TokenizedCorpus,
    make_workspace: MakeWorkspace,
) -> PackedModel:
    return quantize(request.param, tiny_merged, tiny_tokens, make_workspace("quantize"))


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    """A folder with a real tokenizer of 300 pieces and one validation shard made with it."""
    folder = tmp_path / "validation data"
    folder.mkdir()
    text = (
        "The state of the union is strong, and the people of the nation are stronger — über alle Maßen. " * 30
    )
    lines = [text[start : start + 80] for start in range(0, len(text), 80)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    with ShardWriter(folder, "val", 10_000) as writer:
        writer.write(np.array([1, *tokenizer.encode(text)], np.uint16))
    return folder


@pytest.mark.parametrize("keep_comments", [True, False])
def test_the_folder_holds_the_script_and_a_true_copy_of_the_blob(
    keep_comments: bool, packed: PackedModel, make_workspace: MakeWorkspace
) -> None:
    work = make_workspace("package")
    made = package(PackageSpec(keep_comments=keep_comments), packed, work)
    folder = work.root / made.folder
    assert sorted(path.name for path in folder.iterdir()) == ["model.fwz", "train_gpt.py"]
    assert made.blob.sha256 == packed.blob.sha256
    assert not (folder / "model.fwz").samefile(work.root / packed.blob.path)
    assert work.read(made.script) == folder / "train_gpt.py"
    assert made.source_sha256 == made.script.sha256
    assert made.modules[-1] == "stages.core.program"


@pytest.mark.parametrize(
    "either",
    [
        # By default, the program of a run of `smoke` shows it.
        pytest.param(GptqLite(), marks=pytest.mark.slow),
        CODED,
    ],
    indirect=True,
    ids=["gptq_lite", "ecsq"],
)
def test_the_script_alone_scores_the_blob_like_the_modules_do(
    either: PackedModel, make_workspace: MakeWorkspace, validation: Path, tmp_path: Path
) -> None:
    work = make_workspace("package")
    # Its own recipe says that it trains at test time.
    recipe = LoraRecipe(
        train=TrainSettings(compute=ComputeSettings(precision="float32")),
        quantizer=CODED if either.method == CODED.method else GptqLite(),
        compute=ComputeSettings(precision="float32"),
        test_time_training=LORA,
    )
    made = package(PackageSpec(keep_comments=False, recipe=recipe), either, work)
    elsewhere = tmp_path / "somewhere else"
    shutil.copytree(work.root / made.folder, elsewhere)
    command = [
        sys.executable,
        "-I",
        str(elsewhere / "train_gpt.py"),
        "--eval",
        "--val",
        str(validation / "fineweb_val_*.bin"),
    ]
    command += [
        "--tokenizer",
        str(validation / "tokenizer.model"),
        "--json",
        str(tmp_path / "scores.json"),
        "--threads",
        "1",
    ]
    command += [
        "--sequence-length",
        "32",
        "--stride",
        "16",
        "--batch-tokens",
        "256",
        "--precision",
        "float32",
        "--device",
        "cpu",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))

    model = load_packed_model(work.read(either.blob), torch.device("cpu"))
    stream, table = (
        TokenStream(sorted(validation.glob("*.bin"))),
        load_token_bytes(validation / "tokenizer.model"),
    )
    for kind, stride in (("non_overlapping", 32), ("sliding", 16)):
        sums = score(model, stream, table, ScoringSettings(32, 16, 256), stride, torch.float32)
        assert scores[kind]["bpb"] == pytest.approx(sums.bpb, rel=1e-6)
        assert scores[kind]["num_targets"] == sums.num_targets == len(stream) - 1
    told = LoraScores(**scores["test_time_training"])
    learned = score_learning(model, stream, table, ScoringSettings(32, 16, 256), LORA, torch.float32)
    assert told.adapted is not None
    assert learned.adapted is not None
    assert told.adapted.bpb == pytest.approx(learned.adapted.bpb, rel=1e-4)
    assert told.without.bpb == pytest.approx(learned.without.bpb, rel=1e-6)
    assert told.gain_bpb == told.adapted.bpb - told.without.bpb != 0
    assert (told.num_steps, told.num_documents, told.done_share) == (learned.num_steps, 1, 1)
    assert (told.adapted.windows, told.adapted.num_targets) == ("documents", len(stream) - 1)


def test_a_script_that_needs_more_than_a_reviewer_has_is_refused() -> None:
    check_imports("import os, torch\nfrom numpy import array\ndef f():\n    import sentencepiece\n")
    for statement in (
        "import pydantic",
        "def f():\n    from stages.core.model import GPT",
        "from . import x",
    ):
        with pytest.raises(StageError, match="would import"):
            check_imports(statement)


def test_a_package_without_the_code_cannot_train_at_test_time(
    packed: PackedModel, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    made = Package(
        folder="package",
        script=packed.blob,
        blob=packed.blob,
        modules=("stages.core.program",),
        source_sha256=packed.blob.sha256,
    )
    spec = EvaluateSpec(test_time_training=LORA)
    with pytest.raises(
        SpecError, match=r"test_time_training\.on = true: the package was made without its code"
    ):
        evaluate(spec, made, tiny_tokens, make_workspace("evaluate"))


def test_a_damaged_blob_is_not_packaged(packed: PackedModel, make_workspace: MakeWorkspace) -> None:
    work = make_workspace("package")
    path = work.root / packed.blob.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFileError):
        package(PackageSpec(), packed, work)
