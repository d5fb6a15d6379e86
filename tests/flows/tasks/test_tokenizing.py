"""Tokenization as tasks: a part each, `Cached` where the store has it, tried again after an error."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

from flows.tasks import stage_task, tokenizing
from flows.tasks.engines import check_engine, part_runner
from flows.tasks.progress import stage_progress
from schemas.errors import SpecError
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import FilesCorpus, HashFraction, TokenizedCorpus, TokenizerSpec, TokenizeSpec
from stages import tokenize_part as stage
from stages.corpora import locate
from stages.execution.runner import run_stage
from stages.store.store import Store


def texts_of(number: int) -> list[str]:
    return [f"the state of the union in {number} and {line} is strong" for line in range(60)]


def write_files(folder: Path, numbers: range) -> None:
    """A file for each number."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        lines = (json.dumps({"text": text}) + "\n" for text in texts_of(number))
        (folder / f"{number:03d}.jsonl").write_text("".join(lines))


def write_row_groups(folder: Path, numbers: range) -> None:
    """One file, with a row group for each number."""
    folder.mkdir(exist_ok=True)
    texts = [text for number in numbers for text in texts_of(number)]
    pq.write_table(pa.table({"text": texts}), folder / f"{numbers[0]:03d}.parquet", row_group_size=60)


each_kind_of_part = pytest.mark.parametrize("write", [write_files, write_row_groups])


def spec_of(folder: Path, **changes: Any) -> TokenizeSpec:
    return TokenizeSpec(
        corpus=FilesCorpus(paths=(f"{folder}/*",)),
        tokenizer=TokenizerSpec(vocab_size=300, training_bytes=2_500),
        split=HashFraction(val_fraction=0.3),
        shard_tokens=1_000,
        compressor_baselines=False,
    ).derive(**changes)


def whole(spec: TokenizeSpec, store: Path) -> TokenizedCorpus:
    """The result of the one stage."""
    options = RunOptions(store=str(store))
    outcome = run_stage(Store(store), "tokenize_corpus", spec, {"manifest": locate(spec)}, options)
    result: TokenizedCorpus = outcome.record.result
    return result


@pytest.fixture
def in_parts(api: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TokenizedCorpus, list[str]]]:
    """Tokenize a corpus in a flow, each file a part; gives the result and the states of the tasks."""
    monkeypatch.setattr("stages.tokenization.parts.PART_BYTES", 0)
    monkeypatch.setattr(stage_task, "BACKOFF_SECONDS", 0.01)

    def run(spec: TokenizeSpec, **options: Any) -> tuple[TokenizedCorpus, list[str]]:
        @flow(persist_result=False)
        def tokenized() -> TokenizedCorpus:
            runner = stage_task.stage_runner(RunOptions(**options), "test", [])
            result = tokenizing.tokenize(runner, spec, locate(spec))
            assert [item.record.provenance.stage for item in runner.outcomes] == ["tokenize_corpus"]
            return result

        state = tokenized(return_state=True)
        return state.result(), task_states(state.state_details.flow_run_id)

    return run


def task_states(flow_run_id: Any) -> list[str]:
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [flow_run_id]}))
            if all(item.state is not None and item.state.is_final() for item in found):
                return sorted(f"{item.name} {item.state_name} {item.run_count}" for item in found)
            assert time.monotonic() < deadline, f"task runs are still not final: {found}"
            time.sleep(0.1)


@each_kind_of_part
def test_one_more_file_is_one_more_part_which_is_tried_again_in_a_new_folder(
    in_parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, range], None]
) -> None:
    corpus, store, told = tmp_path / "corpus", tmp_path / "store", []
    write(corpus, range(2))
    spec = spec_of(corpus)
    token = stage_progress.set(lambda *heard: told.append(heard))
    try:
        result, states = in_parts(spec, store=str(store), encode_threads=2)
    finally:
        stage_progress.reset(token)
    assert result.identity() == whole(spec, tmp_path / "other").identity()
    assert states == [
        "make_tokenizer-test Completed 1",
        "tokenize_corpus-test Completed 1",
        "tokenize_part-1-test Completed 1",
        "tokenize_part-2-test Completed 1",
    ]
    size = sum(path.stat().st_size for path in corpus.iterdir())
    assert ("tokenize_part", size, size, "bytes") in told

    real, tries = stage.tokenize_part, []

    def breaks_once(spec: Any, work: Any, **inputs: Any) -> Any:
        tries.append(sorted(work.out_dir.iterdir()))
        if len(tries) == 1:
            (work.out_dir / "train.u16").write_bytes(b"half")
            raise OSError("the disk was away")
        return real(spec, **inputs, work=work)

    monkeypatch.setattr(stage, "tokenize_part", breaks_once)
    write(corpus, range(2, 3))
    result, states = in_parts(spec, store=str(store), retries=1)
    assert result.identity() == whole(spec, tmp_path / "other").identity()
    assert tries == [[], []]
    assert states == [
        "make_tokenizer-test Cached 1",
        "tokenize_corpus-test Completed 1",
        "tokenize_part-1-test Cached 1",
        "tokenize_part-2-test Cached 1",
        "tokenize_part-3-test Completed 2",
    ]


def test_an_engine_that_is_not_installed_or_not_there_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("schemas.extras.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"needs the package prefect-ray\. Install it: .* 'prefect-ray>=0\.6"):
        check_engine(RunOptions(engine="ray:ray://head:10001"))
    check_engine(RunOptions(engine="threads"))
    with pytest.raises(ValueError, match="must be threads, dask:HOST:PORT"):
        RunOptions(engine="spark:local")


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named() -> None:
    pytest.importorskip("prefect_dask", reason="needs the extra dask")
    import dask

    options = RunOptions(engine="dask:127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(SpecError, match=r"engine = dask:127\.0\.0\.1:9: the cluster cannot be reached"),
        part_runner(options, 1),
    ):
        pass


@pytest.mark.slow
@each_kind_of_part
def test_dask_gives_the_same_bytes_though_a_worker_is_killed(
    in_parts: Any, tmp_path: Path, write: Callable[[Path, range], None]
) -> None:
    pytest.importorskip("prefect_dask", reason="needs the extra dask")
    from distributed import LocalCluster

    corpus, store = tmp_path / "corpus", tmp_path / "store"
    write(corpus, range(8))
    spec = spec_of(corpus)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        victim = next(iter(cluster.workers.values())).pid
        stop = kill_at_first_part(store, victim)
        result, states = in_parts(spec, store=str(store), engine=f"dask:{cluster.scheduler_address}")
        stop()
    assert result.identity() == whole(spec, tmp_path / "other").identity()
    assert sum("tokenize_part" in state for state in states) == 8


@pytest.mark.slow
def test_ray_gives_the_same_bytes(in_parts: Any, tmp_path: Path) -> None:
    pytest.importorskip("prefect_ray", reason="needs the extra ray")
    import ray

    corpus, store = tmp_path / "corpus", tmp_path / "store"
    write_files(corpus, range(4))
    spec = spec_of(corpus)
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        address = ray.get_runtime_context().gcs_address
        result, states = in_parts(spec, store=str(store), engine=f"ray:{address}")
    finally:
        ray.shutdown()
    assert result.identity() == whole(spec, tmp_path / "other").identity()
    assert sum("tokenize_part" in state for state in states) == 4


def kill_at_first_part(store: Path, pid: int) -> Callable[[], None]:
    """Kill the process once the store has a part; the answer waits for that and fails if it did not come."""
    from threading import Thread

    def wait() -> None:
        while not any(store.glob("stages/tokenize_part/*/record.json")):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    thread = Thread(target=wait, daemon=True)
    thread.start()

    def stop() -> None:
        thread.join(5)
        assert not thread.is_alive()

    return stop
