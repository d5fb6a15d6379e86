"""The frontier of a run through the command line: points, files, the second call, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.utilities.callables import parameter_schema
from typer.testing import CliRunner, Result

from flows import frontier as module
from flows.cli.main import app
from flows.results.frontier_points import EFFICIENT, frontier_rows
from flows.tasks.progress import stage_progress
from schemas.errors import StageError
from schemas.frontier import Frontier, FrontierPoint
from schemas.runtime import RunOptions
from stages.report.frontier_plot import frontier_png, frontier_svg
from stages.store.housekeeping import find_damage
from stages.store.store import Store

SCHEMES = ("reference", "ecsq:0.01")


def fairway(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["frontier", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def found(
    smoke_run: Any, smoke_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Frontier, Path]:
    folder = tmp_path_factory.mktemp("frontier") / "new"
    chosen = [word for name in SCHEMES for word in ("--scheme", name)]
    result = fairway(smoke_run.report.run_id, *chosen, "--store", smoke_store, "--output", folder, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told.pop("folder") == str(folder)
    return Frontier.model_validate(told), folder


@pytest.mark.slow
def test_every_scheme_is_a_package_that_was_scored(found: tuple[Frontier, Path], smoke_run: Any) -> None:
    frontier, report = found[0], smoke_run.report
    assert [point.scheme for point in frontier.points] == list(SCHEMES)
    assert frontier.unquantized_bpb == report.val_bpb_merged
    assert frontier.num_targets == report.merged.score.num_targets
    for point in frontier.points:
        assert point.total_bytes == point.model_bytes + point.code_bytes
        assert point.gap_bpb == point.bpb - report.val_bpb_merged
        assert point.code_bytes > 50_000
    assert len({point.bpb for point in frontier.points}) == len(SCHEMES)
    # The same windows and precision as in the run itself, whose sliding score is left out here.
    assert frontier.shipped.bpb == report.val_bpb_quantized
    assert frontier.shipped.total_bytes == report.size.total_bytes


@pytest.mark.slow
def test_the_plot_is_a_picture_with_every_quantizer_on_it(found: tuple[Frontier, Path]) -> None:
    frontier, folder = found
    pixels = _pixels(folder / "frontier.png")
    assert min(pixels.shape[:2]) > 600
    colours = {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    for wanted in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x1D, 0x27, 0x33)):  # ecsq, the run, reference
        assert wanted in colours
    svg = (folder / "frontier.svg").read_text()
    assert all(
        text in svg
        for text in ("reference", "ecsq", "0.01 nats", "not quantized", "the run itself (gptq_lite)")
    )
    assert "limit" not in svg  # sixteen million are far to the right
    near = frontier.model_copy(update={"limit_bytes": frontier.shipped.total_bytes})
    assert "limit" in frontier_svg(near)
    assert frontier_png(frontier) == (folder / "frontier.png").read_bytes()


@pytest.mark.slow
def test_a_second_call_computes_nothing_and_gives_the_same(
    found: tuple[Frontier, Path], smoke_run: Any, smoke_store: Path
) -> None:
    frontier, folder = found
    before = {path: path.stat().st_mtime_ns for path in smoke_store.glob("stages/*/*")}
    chosen = [word for name in SCHEMES for word in ("--scheme", name)]
    again = fairway(smoke_run.report.run_id, *chosen, "--store", smoke_store)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in smoke_store.glob("stages/*/*")} == before
    assert again.stderr.count("found in the store") == 4 * len(SCHEMES) + 1
    there = smoke_store / "frontiers" / smoke_run.report.name
    assert str(there / "frontier.png") in again.stdout
    assert Frontier.model_validate_json((there / "frontier.json").read_bytes()) == frontier
    assert (there / "frontier.png").read_bytes() == (folder / "frontier.png").read_bytes()
    for point in frontier.points:
        assert f"{point.total_bytes:,}" in again.stdout
    assert list(find_damage(Store(smoke_store))) == []
    with get_client(sync_client=True) as client:
        keys = ArtifactFilter(key=ArtifactFilterKey(any_=["frontier", "frontier-plot"]))
        artifacts = {artifact.key: artifact.data for artifact in client.read_artifacts(artifact_filter=keys)}
    assert json.loads(artifacts["frontier"]) == frontier_rows(frontier)
    assert "data:image/svg+xml;base64," in artifacts["frontier-plot"]


@pytest.fixture
def gptq_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage of the scheme gptq:int5 fails."""
    real = module.stage_runner

    def broken(options: RunOptions, label: str, outcomes: list[Any]) -> Any:
        def fail(stage: str, *_: Any, **__: Any) -> Any:
            raise StageError(f"{stage}: no such luck")

        return fail if label.endswith("gptq:int5") else real(options, label, outcomes)

    monkeypatch.setattr(module, "stage_runner", broken)


@pytest.mark.usefixtures("gptq_fails")
def test_a_scheme_that_fails_takes_no_other_with_it(
    smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    asked = [
        smoke_run.report.run_id,
        "--scheme",
        "gptq:int5",
        "--scheme",
        "reference",
        "--store",
        smoke_store,
        "--output",
        tmp_path,
    ]
    result = fairway(*asked, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert [point["scheme"] for point in told["points"]] == ["reference"]
    [point] = told["points"]
    assert point["total_bytes"] == point["model_bytes"] + point["code_bytes"]
    assert point["gap_bpb"] == point["bpb"] - smoke_run.report.val_bpb_merged
    assert min(_pixels(tmp_path / "frontier.png").shape[:2]) > 600
    assert told["failed"] == {"gptq:int5": "quantize: no such luck"}
    assert result.stderr.splitlines()[-1] == "gptq:int5"
    assert "failed: quantize: no such luck" in fairway(*asked).stdout
    assert fairway(*asked[:3], *asked[5:]).exit_code == 1  # no point at all


def test_points_that_nothing_beats_are_marked() -> None:
    smallest = FrontierPoint(
        scheme="reference",
        method="gptq_lite",
        model_bytes=400,
        code_bytes=600,
        total_bytes=1_000,
        bits_per_parameter=0.1,
        bpb=2.7,
        gap_bpb=0.1,
        quantize_seconds=1.0,
    )
    shipped = smallest.derive(scheme="", total_bytes=1_500, bpb=2.65)
    frontier = Frontier(
        run_id="1",
        run_name="smoke",
        unquantized_bpb=2.6,
        limit_bytes=16_000_000,
        num_targets=100,
        sequence_length=64,
        precision="float32",
        shipped=shipped,
        points=(smallest,),
        failed={},
    )
    worse = smallest.derive(scheme="worse", total_bytes=smallest.total_bytes + 1, bpb=smallest.bpb + 0.1)
    over = smallest.derive(scheme="over", bpb=frontier.unquantized_bpb - 1)
    rows = {
        row["scheme"]: row[""]
        for row in frontier_rows(
            frontier.derive(points=(smallest, worse, over), limit_bytes=over.total_bytes - 7)
        )
    }
    assert rows["worse"] == "over the limit by 8"
    assert rows["over"] == f"{EFFICIENT}, over the limit by 7"
    assert rows[smallest.scheme] == "over the limit by 7"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing"], ["RUN = nothing", "no such run"]),
        (["last", "--scheme", "gtpq:int5"], ["scheme = gtpq:int5", "did you mean gptq:int5"]),
        (["last", "--scheme", "ecsq:0"], ["scheme = ecsq:0", "above 0"]),
        (["last", "--retries", "-1"], ["--retries = -1"]),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    arguments: list[str], named: list[str], smoke_run: Any, smoke_store: Path
) -> None:
    result = fairway(*arguments, "--store", smoke_store)
    assert result.exit_code == 2
    assert all(text in result.stderr for text in named), result.stderr
    assert "server" not in result.stderr


def test_weights_that_are_gone_are_named_with_the_remedy(smoke_run: Any, smoke_store: Path) -> None:
    weights = smoke_store / smoke_run.report.merged.weights.path
    away = weights.rename(weights.with_suffix(".away"))
    try:
        result = fairway(smoke_run.report.run_id, "--scheme", "reference", "--store", smoke_store)
    finally:
        away.rename(weights)
    assert result.exit_code == 2
    assert "merged.safetensors is missing" in result.stderr
    assert "Run the pipeline" in result.stderr


def test_a_folder_that_cannot_be_is_refused_before_anything_is_quantized(
    smoke_run: Any, smoke_store: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = fairway(smoke_run.report.run_id, "--store", smoke_store, "--output", tmp_path / "file" / "plots")
    assert result.exit_code == 2
    assert "output = " in result.stderr
    assert "quantized" not in result.stderr


def test_the_bar_counts_schemes_and_tells_the_stage() -> None:
    told: list[tuple[Any, ...]] = []
    token = stage_progress.set(lambda *heard: told.append(heard))
    try:
        with module.overall_progress(1, 4, "gptq:int5"):
            tell = stage_progress.get()
            assert tell is not None
            tell("quantize", 1, 2, "calibration steps")
            tell("evaluate", 3, 4, "windows")
            tell("evaluate", 4, 4, "windows")
        with module.overall_progress(3, 4, "reference"):
            stage_progress.get()("evaluate", 4, 4, "windows")  # type: ignore[misc]
    finally:
        stage_progress.reset(token)
    assert [(done, of) for _, done, of, _ in told] == [(1.25, 4), (1.875, 4), (2.0, 4), (3.99, 4)]
    assert told[0] == ("frontier", 1.25, 4, "schemes, gptq:int5: quantize")


def test_the_form_is_flat_optional_and_described() -> None:
    schema = parameter_schema(module.frontier)
    assert schema.required == []
    assert set(schema.properties) == {"run", "schemes", "folder", "options"}
    assert all(len(field["description"]) > 20 and "type" in field for field in schema.properties.values())


def _pixels(path: Path) -> np.ndarray:
    """(height, width, 3) uint8 of a file that is really a PNG."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return (255 * imread(path)[:, :, :3]).round().astype(np.uint8)
