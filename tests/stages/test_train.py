"""Training through torchrun in real processes, and the loop inside this one."""

import base64
import hashlib
import json
import math
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sentencepiece
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

from schemas.errors import SpecError, StageError, StoppedError
from schemas.files import SourceFile
from schemas.held_out import HeldOut, StopRule
from schemas.scoring_settings import ScoringSettings
from schemas.tokenize_corpus import TokenizedCorpus
from schemas.train import TrainingResult
from schemas.train_settings import TrainSettings
from stages.core.model import GPT
from stages.core.schedule import Clock, lr_scale_at
from stages.core.trainer import DivergedError, Hooks, StepMetrics, Trainer, TrainState
from stages.store.workspace import Workspace
from stages.train import train
from stages.training.files import TrainingFiles

MakeWorkspace = Callable[..., Workspace]


def run(
    settings: TrainSettings, tokens: TokenizedCorpus, work: Workspace
) -> tuple[TrainingResult, dict[str, torch.Tensor], list[dict]]:
    trained = train(settings, tokens, work)
    rows = pq.read_table(work.root / trained.metrics.path).to_pylist()
    return trained, load_file(work.root / trained.last.weights.path), rows


def train_here(
    settings: TrainSettings,
    tokens: TokenizedCorpus,
    resume: TrainState | None = None,
    stop_after: int | None = None,
):
    """The loop in this process: weights, losses by step, and the states handed to the checkpoint hook
    after every step.
    """
    rows: list[StepMetrics] = []
    states: list[TrainState] = []
    snapshots: dict[int, dict[str, torch.Tensor]] = {}
    hooks = Hooks(
        rows.append,
        lambda step, scale, qat, weights: snapshots.update({step: weights}),
        lambda: True,
        states.append,
    )
    trainer = Trainer(settings, [Path(ref.path) for ref in tokens.train_shards], hooks, resume)
    trainer.run()
    return trainer.weights(), rows, states, snapshots


def test_a_run_leaves_a_full_account(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    work = make_workspace()
    trained, weights, rows = run(smoke_training, tiny_tokens, work)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["tokens"] == trained.tokens_seen == 12 * 1024
    assert [item.step for item in trained.snapshots] == [row["step"] for row in rows if row["snapshot"]] != []
    assert trained.qat_steps == sum(row["qat_on"] for row in rows) > 0
    assert sorted(name for group in trained.groups for name in group.parameters) == sorted(weights)
    assert trained.num_parameters == sum(tensor.numel() for tensor in weights.values())
    assert all(change.change_rms > 0 for change in trained.changes), [
        c.name for c in trained.changes if c.change_rms == 0
    ]
    assert sorted(path.name for path in work.out_dir.iterdir()) == [
        "checkpoints",  # these two go when the result is published
        "last.safetensors",
        "metrics.jsonl",
        "metrics.parquet",
        "snapshots",
    ]


def with_tokenizer(tokens: TokenizedCorpus, folder: Path) -> TokenizedCorpus:
    """The same shards with a tokenizer that can be read, for scores in bits per byte."""
    text = (f"The state of the Union, {n} times: über alle Maßen strong." for n in range(300))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text,
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
    path = folder / "tokenizer.model"
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return tokens.derive(
        tokenizer=SourceFile(path=str(path), num_bytes=len(content), sha256=sha256), tokenizer_sha256=sha256
    )


def scoring(work: Workspace, **changes: Any) -> Workspace:
    """The workspace of a run that scores all of the held-out text after each half."""
    windows = ScoringSettings(sequence_length=64, stride=32, batch_tokens=512)
    held_out = HeldOut(every=0.5, tokens=0, scoring=windows, **changes)
    return replace(work, runtime=work.runtime.derive(held_out=held_out))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def write_pickles(out_dir: Path, created: Path, written: list[str]) -> None:
    """Reach the rendezvous of a training and put pickles under every key that it has, and torchrun's own."""
    deadline = time.monotonic() + 120
    metrics = out_dir / "metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    [first] = (out_dir / "nodes").glob("*-0.node")
    told = json.loads(first.read_text())
    store = dist.TCPStore(told["address"], told["port"], is_master=False, timeout=timedelta(seconds=60))
    payload = pickle.dumps(Payload(created))
    for key in (*store.list_keys(), "torch.rendezvous.none", f"torch.rendezvous.{first.stem[:32]}"):
        store.set(key, base64.b64encode(payload))
        store.set(key, payload)
        written.append(key)


def test_two_processes_train_and_score_like_one_on_two_machines_too_where_a_pickle_at_their_port_runs_nothing(
    smoke_training: TrainSettings,
    tiny_tokens: TokenizedCorpus,
    make_workspace: MakeWorkspace,
    tmp_path: Path,
) -> None:
    tokens = with_tokenizer(tiny_tokens, tmp_path)
    compute = replace(smoke_training.compute, precision="float32")
    one, weights_one, rows_one = run(
        replace(smoke_training, compute=compute), tokens, scoring(make_workspace("one"))
    )
    two, weights_two, rows_two = run(
        replace(smoke_training, compute=replace(compute, num_processes=2)),
        tokens,
        scoring(make_workspace("two")),
    )
    points = [
        {row["step"]: row["val_bpb"] for row in rows if row["val_bpb"] is not None}
        for rows in (rows_one, rows_two)
    ]
    assert list(points[0]) == [6, 12]
    assert points[0] == pytest.approx(points[1], rel=2e-4)
    assert two.tokens_seen == one.tokens_seen
    for a, b in zip(rows_one, rows_two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4)
    for name, tensor in weights_one.items():
        torch.testing.assert_close(tensor, weights_two[name], rtol=0, atol=5e-3)

    machines, created, written = make_workspace("machines"), tmp_path / "created", list[str]()
    intruder = threading.Thread(target=write_pickles, args=(machines.out_dir, created, written))
    intruder.start()
    _, weights, rows = run(
        replace(smoke_training, compute=replace(compute, num_nodes=2)), tiny_tokens, machines
    )
    intruder.join()
    assert len(written) > 2
    assert not created.exists()
    assert not (machines.out_dir / "nodes").exists()
    assert [row["loss"] for row in rows] == [row["loss"] for row in rows_two]
    assert all(torch.equal(tensor, weights_two[name]) for name, tensor in weights.items())
    pickle.loads(pickle.dumps(Payload(created)))
    assert created.exists()  # the payload works


@pytest.mark.slow
def test_a_rule_ends_both_of_two_processes_and_leaves_metrics_and_a_checkpoint(
    smoke_training: TrainSettings,
    tiny_tokens: TokenizedCorpus,
    make_workspace: MakeWorkspace,
    tmp_path: Path,
) -> None:
    two = replace(smoke_training, compute=replace(smoke_training.compute, num_processes=2))
    work = scoring(make_workspace(), rules=(StopRule(figure="val_bpb", limit=0.01, at=0.5),))
    with pytest.raises(StoppedError, match=r"stopped at step 6 \(50%\): val_bpb is"):
        train(two, with_tokenizer(tiny_tokens, tmp_path), work)
    assert pq.read_table(work.out_dir / "metrics.parquet").num_rows == 6
    assert [path.stem for path in (work.out_dir / "checkpoints").glob("*.json")] == ["step-00000006"]


def test_a_run_is_bitwise_reproducible_and_another_seed_is_another_run(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus
) -> None:
    first, rows, _, _ = train_here(smoke_training, tiny_tokens)
    again, rows_again, _, _ = train_here(smoke_training, tiny_tokens)
    other, _, _, _ = train_here(replace(smoke_training, seed=7), tiny_tokens)
    assert [row.loss for row in rows] == [row.loss for row in rows_again]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tok_emb.weight"], other["tok_emb.weight"])


def test_a_resumed_run_ends_in_the_same_bits(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus
) -> None:
    whole, rows, states, snapshots = train_here(smoke_training, tiny_tokens)
    for state in (states[3], states[10]):
        resumed, later_rows, _, later_snapshots = train_here(smoke_training, tiny_tokens, resume=state)
        assert [row.loss for row in later_rows] == [row.loss for row in rows[state.steps :]]
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert all(
            torch.equal(weights[name], snapshots[step][name])
            for step, weights in later_snapshots.items()
            for name in weights
        )


def test_the_stage_goes_on_from_the_newest_sound_checkpoint(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    _, expected, _ = run(smoke_training, tiny_tokens, make_workspace("undisturbed"))
    work = make_workspace("interrupted")
    files = TrainingFiles(work.out_dir, checkpoint_every_seconds=0, keep_checkpoints=2)
    states: list[TrainState] = []

    def stop_at_nine(metrics: StepMetrics) -> None:
        files.add_metrics(metrics)
        if metrics.step == 9:
            raise KeyboardInterrupt

    hooks = Hooks(
        stop_at_nine,
        files.add_snapshot,
        lambda: True,
        lambda state: (states.append(state), files.add_checkpoint(state)),
    )
    with pytest.raises(KeyboardInterrupt):
        Trainer(smoke_training, [Path(ref.path) for ref in tiny_tokens.train_shards], hooks).run()
    files.close()
    newest = sorted((work.out_dir / "checkpoints").glob("*.safetensors"))
    assert [path.stem for path in newest] == ["step-00000007", "step-00000008"]
    damaged = bytearray(newest[-1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest[-1].write_bytes(damaged)
    trained, weights, rows = run(smoke_training, tiny_tokens, work)
    assert trained.timings.resumed_from_steps == (7,)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_value_embedding_stays_put_only_when_frozen_on_purpose(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    frozen = replace(
        smoke_training,
        optimizer=replace(
            smoke_training.optimizer, frozen=("value_embedding.table.*", "value_embedding.proj.*")
        ),
    )
    trained, _, _ = run(frozen, tiny_tokens, make_workspace())
    still = {change.name for change in trained.changes if change.change_rms == 0}
    # With a zero projection that never trains, the value embedding adds nothing, so its scale gets no
    # gradient either.
    assert still >= {"value_embedding.table.weight", "value_embedding.proj.weight"}
    assert [
        group.optimizer for group in trained.groups if "value_embedding.proj.weight" in group.parameters
    ] == ["none"]


def test_the_wallclock_cap_ends_training_and_the_schedule_reaches_its_end(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus
) -> None:
    schedule = replace(smoke_training.schedule, max_steps=100_000, max_seconds=1.5)
    _, rows, _, _ = train_here(replace(smoke_training, schedule=schedule), tiny_tokens)
    assert all(row.seconds < 1.5 for row in rows[:-1])
    assert rows[-1].seconds >= 1.5
    for before, row in zip(rows, rows[1:], strict=False):
        assert row.lr_scale == lr_scale_at(Clock(before.step, before.seconds), schedule)


def test_warmup_passes_leave_every_bit_as_it_was(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus
) -> None:
    plain, _, _, _ = train_here(smoke_training, tiny_tokens)
    warmed, _, _, _ = train_here(
        replace(smoke_training, schedule=replace(smoke_training.schedule, compile_warmup_steps=3)),
        tiny_tokens,
    )
    assert all(torch.equal(plain[name], warmed[name]) for name in plain)


def test_a_diverged_loss_stops_the_stage_with_step_and_last_good_checkpoint(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    wild = replace(
        smoke_training,
        optimizer=replace(smoke_training.optimizer, embedding_lr=1e38, scalar_lr=1e38, grad_clip_norm=0.0),
    )
    with pytest.raises(StageError, match=r"training loss is (nan|inf) at step \d+; .*checkpoint"):
        train(wild, tiny_tokens, make_workspace())


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Counts the graphs that `torch.compile` makes from now on; it compiles nothing."""
    torch._dynamo.reset()
    counting = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    return counting


def test_loops_begin_at_their_share_and_nothing_compiles_after_the_clock_started(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus, counter: CompileCounter
) -> None:
    settings = replace(
        smoke_training,
        model=replace(smoke_training.model, loop_passes=2, loop_layers=(1,)),
        schedule=replace(
            smoke_training.schedule, max_steps=8, compile_warmup_steps=1, loop_start_fraction=0.5
        ),
        compute=replace(smoke_training.compute, compile=True),
    )
    graphs: list[int] = []
    looped: list[bool] = []
    trainer = Trainer(
        settings,
        [Path(ref.path) for ref in tiny_tokens.train_shards],
        Hooks(step=lambda row: (graphs.append(counter.frame_count), looped.append(trainer.model.looped))),  # type: ignore[arg-type, func-returns-value]
    )
    trained = trainer.run()
    assert graphs == [2] * 8
    assert looped == [False] * 4 + [True] * 4
    assert trained.model.looped


def test_a_short_context_trains_as_short_rows_do_and_nothing_compiles_when_it_grows(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus, counter: CompileCounter
) -> None:
    data = replace(smoke_training.data, order="sequential")
    growing = replace(
        smoke_training,
        schedule=replace(smoke_training.schedule, max_steps=8, compile_warmup_steps=1),
        compute=replace(smoke_training.compute, compile=True),
        data=replace(data, context_lengths=(data.sequence_length // 4,), context_ends=(0.5,)),
    )
    short = replace(
        data,
        sequence_length=data.sequence_length // 4,
        micro_batch_sequences=4 * data.micro_batch_sequences,
    )
    shards = [Path(ref.path) for ref in tiny_tokens.train_shards]

    graphs: list[int] = []
    contexts: list[int] = []

    def losses(settings: TrainSettings) -> list[float]:
        rows: list[StepMetrics] = []
        graphs.clear()
        hooks = Hooks(step=lambda row: (rows.append(row), graphs.append(counter.frame_count)))  # type: ignore[arg-type, func-returns-value]
        Trainer(settings, shards, hooks).run()
        contexts[:] = [row.context for row in rows]
        return [row.loss for row in rows]

    grown = losses(growing)
    assert graphs == [2] * 8
    assert contexts == [short.sequence_length] * 4 + [data.sequence_length] * 4
    of_short, of_long = losses(replace(growing, data=short)), losses(replace(growing, data=data))
    assert grown[:4] == of_short[:4]
    assert grown[4:] != of_short[4:]
    assert grown[0] != of_long[0]


def test_a_gradient_that_is_not_finite_stops_training_though_the_loss_still_is(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus
) -> None:
    rows: list[StepMetrics] = []
    trainer = Trainer(
        smoke_training, [Path(ref.path) for ref in tiny_tokens.train_shards], Hooks(rows.append)
    )
    trainer.model.tok_emb.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match=r"gradient norm is (nan|inf) at step 1"):
        trainer.run()
    assert rows == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: replace(s, model=replace(s.model, vocab_size=512)),
            "train.model.vocab_size = 512: the tokenizer has 320",
        ),
        (
            lambda s: replace(s, data=replace(s.data, sequence_length=1024)),
            "train.data.sequence_length = 1024: the validation split has only 700",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_process_starts(
    smoke_training: TrainSettings,
    tiny_tokens: TokenizedCorpus,
    make_workspace: MakeWorkspace,
    change: Callable,
    message: str,
) -> None:
    work = make_workspace()
    with pytest.raises(SpecError, match=message):
        train(change(smoke_training), tiny_tokens, work)
    assert list(work.out_dir.iterdir()) == []


def test_half_written_files_of_a_killed_run_are_removed_before_training_goes_on(tmp_path: Path) -> None:
    for name in ("checkpoints", "snapshots", "."):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / ".step-00000001.safetensors.123-abcdef01.tmp").write_bytes(b"half")
    TrainingFiles(tmp_path, 30, 2).resume()
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_a_metrics_line_that_a_kill_cut_in_half_is_left_out(tmp_path: Path) -> None:
    files = TrainingFiles(tmp_path, 30, 2)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo', encoding="utf-8")
    assert files.metrics() == [{"step": 1}]
    files.close()


def test_the_mean_of_all_steps_is_that_of_the_weights_after_each_also_after_an_interruption(
    smoke_training: TrainSettings, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> None:
    horizon = 0.3
    settings = replace(smoke_training, snapshots=replace(smoke_training.snapshots, ema_horizon=horizon))
    weights, _, states, _ = train_here(settings, tiny_tokens)
    _, plain, _ = run(smoke_training, tiny_tokens, make_workspace("plain"))
    initial = GPT(settings.model)
    initial.init_weights(settings.seed)
    share = 1 - math.exp(-1 / settings.schedule.max_steps / horizon)
    expected = {name: param.detach().double() for name, param in initial.named_parameters()}
    for state in states:
        for name, mean in expected.items():
            mean.lerp_(state.tensors[f"model/{name}"].double(), share)
    work = make_workspace("whole")
    trained, last, _ = run(settings, tiny_tokens, work)
    assert trained.ema is not None
    ema = load_file(work.root / trained.ema.weights.path)
    for name, mean in expected.items():
        torch.testing.assert_close(ema[name].double(), mean, rtol=1e-5, atol=1e-7)
        assert torch.equal(last[name], plain[name])  # the mean is kept beside training, not in it
    resumed = Trainer(settings, [Path(ref.path) for ref in tiny_tokens.train_shards], Hooks(), states[4])
    resumed.run()
    assert all(torch.equal(mean, ema[name]) for name, mean in resumed.ema_weights().items())
    assert all(torch.equal(weights[name], last[name]) for name in last)
