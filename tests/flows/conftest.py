"""One temporary Prefect server for all flow tests, and one real run of the preset `smoke`."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.server.environment import prefect_api
from flows.server.settings import check_settings, settings_first

# Prefect reads its environment once, when it is first imported. Here it is ours; inside a test it would be
# that of the test, and stay so for the tests after it.
os.environ.pop("PREFECT_API_URL", None)
_HOME = tempfile.TemporaryDirectory(prefix="fairway-prefect-", ignore_cleanup_errors=True)
os.environ["PREFECT_HOME"] = _HOME.name
settings_first(Path(os.environ["PREFECT_HOME"]))
check_settings()


@dataclass(frozen=True)
class FlowRun:
    """A finished run of the pipeline: its Prefect state, its report if it left one, and its task runs by
    name.
    """

    state: Any
    report: Any
    task_states: dict[str, Any]

    @property
    def computed(self) -> list[str]:
        """Stages that were really run, in their order."""
        return [name for name, state in self.task_states.items() if state.name != "Cached"]


@dataclass(frozen=True)
class Fitted:
    """A requantized run with a byte limit."""

    limit_bytes: int
    rows: Any
    report: Any


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prefect_api(tmp_path_factory.mktemp("prefect store")) as url:
        yield url


@pytest.fixture(scope="session")
def run_pipeline(api: str) -> Callable[..., FlowRun]:
    """Run the pipeline on a store with overrides; the answer does not raise."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    from flows.pipeline import pipeline
    from schemas.runtime import RunOptions
    from schemas.stages import STAGES
    from stages.store.runs import load_report

    def run(
        store: Path, *overrides: str, preset: str = "smoke", retries: int = 1, remote: str | None = None
    ) -> FlowRun:
        state = pipeline(
            preset,
            overrides=list(overrides),
            options=RunOptions(store=str(store), retries=retries, remote=remote),
            return_state=True,
        )
        run_id = state.state_details.flow_run_id
        # Task states travel as events and reach the server's table after the flow has ended.
        deadline = time.monotonic() + 60
        with get_client(sync_client=True) as client:
            while True:
                task_runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
                if all(task.state is not None and task.state.is_final() for task in task_runs):
                    break
                assert time.monotonic() < deadline, f"task runs are still not final: {task_runs}"
                time.sleep(0.1)
        by_stage = {task.name.split("-")[0]: task.state for task in task_runs}
        return FlowRun(
            state,
            load_report(store, str(run_id)),
            {stage: by_stage[stage] for stage in STAGES if stage in by_stage},
        )

    return run


@pytest.fixture(scope="session")
def smoke_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose path has a space and a letter beyond ASCII."""
    return tmp_path_factory.mktemp("store") / "of smöke"


@pytest.fixture(scope="session")
def smoke_run(run_pipeline: Callable[..., FlowRun], smoke_store: Path) -> FlowRun:
    return run_pipeline(smoke_store)


@pytest.fixture
def root(smoke_run: FlowRun, smoke_store: Path, tmp_path: Path) -> Path:
    """A store with the smoke run alone, which the test may change."""
    from stages.store.runs import save_report

    root = tmp_path / "store"
    for done in smoke_run.report.stages:
        folder = Path("stages", done.stage, done.key[:32])
        shutil.copytree(smoke_store / folder, root / folder)
    save_report(root, smoke_run.report)
    return root


@pytest.fixture(scope="session")
def plain_clips(run_pipeline: Callable[..., FlowRun], smoke_run: FlowRun, smoke_store: Path) -> FlowRun:
    """The smoke run's model again, by a quantizer whose clip grid leaves nothing to choose; late QAT keeps
    its grid, so that nothing is trained again.
    """
    qat = smoke_run.report.spec.train.qat
    kept = (f"train.qat.grid={qat.grid}", f"train.qat.clip_candidates={list(qat.clip_candidates)}")
    return run_pipeline(smoke_store, *kept, "quantize.clip_candidates=[1.0, 1.0]")


@pytest.fixture(scope="session")
def over_limit(run_pipeline: Callable[..., FlowRun], smoke_run: FlowRun, smoke_store: Path) -> FlowRun:
    """The smoke run's model with a limit of 100 bytes, which its package is over."""
    return run_pipeline(smoke_store, "check_size.limit_bytes=100")


@pytest.fixture(scope="session")
def fitted(smoke_run: FlowRun, smoke_store: Path) -> Fitted:
    """The smoke run's model again, by ecsq, in a compressed package that is fitted to a third of the
    bytes that the model had.
    """
    from flows.requantize import requantize
    from schemas.overrides import apply_overrides
    from schemas.runtime import RunOptions
    from stages.packaging.script import as_shipped, program

    smoke, compressed = smoke_run.report, "package.compressed=true"
    spec = apply_overrides(smoke.spec, [compressed, "quantize.method=ecsq"])
    limit = (
        len(as_shipped(program(spec.package, spec.recipe())[0], spec.package)) + smoke.size.model_bytes // 3
    )
    options = RunOptions(store=str(smoke_store), retries=0)
    state = requantize(
        smoke.run_id, limit_bytes=limit, overrides=(compressed,), options=options, return_state=True
    )
    rows, [report] = state.result()
    return Fitted(limit, rows, report)
