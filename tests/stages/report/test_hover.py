"""Pointing at a plot of a page tells its figures; without JavaScript the plot stays."""

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.report import plots
from stages.report.curves_plot import AXES, curves_svg
from stages.report.hover import assets, curves_chart, hoverable, loss_chart, schedule_charts
from stages.report.smoothing import running_mean
from stages.training.metrics import Columns

HOSTILE = "</div>\"'<script>alert(1)</script>"


def training(steps: int, every: int = 10, slower: float = 1.0) -> Columns:
    """Metrics of a training whose held-out text was scored every so many steps."""
    step = np.arange(1, steps + 1)
    loss = 3 + 5 / step + 0.01 * np.sin(step)
    lr_scale = (steps - step) / steps
    return {
        "step": step,
        "loss": loss,
        "lr_scale": lr_scale,
        "muon_momentum": np.full(steps, 0.95),
        "grad_norm": 1 / step,
        "qat_on": lr_scale < 0.2,
        "snapshot": (lr_scale < 0.1) & (step % 2 == 0),
        "val_nats": np.where(step % every == 0, loss + 0.25, np.nan),
        "seconds": 0.5 * slower * step,
        "tokens": 2048.0 * step,
    }


def told(box: str) -> list[dict[str, Any]]:
    """The charts that the script finds in a box."""
    [charts] = re.findall(r'data-charts="([^"]*)"', box)
    return json.loads(unescape(charts))


def test_a_box_holds_the_plot_and_the_figures_of_its_lines() -> None:
    metrics = training(100)
    svg = plots.loss_curve(metrics, themed=True)
    box = hoverable(svg, [loss_chart(metrics)])
    assert svg in box
    [chart] = told(box)
    loss, mean, held_out = chart["lines"]
    assert loss["x"] == mean["x"] == [list(range(1, 101))]
    np.testing.assert_allclose(loss["y"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(mean["y"], running_mean(metrics["loss"]), rtol=1e-5)
    assert held_out["x"] == [list(range(10, 101, 10))]
    np.testing.assert_allclose(held_out["y"], metrics["val_nats"][9::10], rtol=1e-5)
    assert {band["label"]: (band["first"], band["last"]) for band in chart["bands"]} == {
        "snapshot window": (92, 100),
        "QAT on": (81, 100),
    }


def test_a_training_without_scores_and_snapshots_has_no_lines_of_them() -> None:
    metrics = training(100)
    none = {**metrics, "val_nats": np.full(100, np.nan), "snapshot": np.zeros(100, bool)}
    labels = [line.label for chart in (loss_chart(none), *schedule_charts(none)) for line in chart.lines]
    assert labels == ["loss", "running mean", "learning-rate scale", "Muon momentum", "gradient norm"]


def test_compared_runs_have_their_places_on_each_axis() -> None:
    [chart] = told(hoverable("", [curves_chart([("A", training(100)), ("B", training(60, slower=2))])]))
    assert chart["axes"] == [label for _, label in AXES]
    assert [line["label"] for line in chart["lines"]] == ["A", "A, held-out text", "B", "B, held-out text"]
    steps, seconds, tokens = chart["lines"][2]["x"]
    assert (steps[-1], seconds[-1], tokens[-1]) == (60, 60.0, 0.12288)


def test_a_long_training_makes_no_large_page() -> None:
    assert len(hoverable("", [loss_chart(training(200_000))])) < 120_000


def test_a_name_is_text_whatever_stands_in_it() -> None:
    box = hoverable("", [curves_chart([(HOSTILE, training(20))])])
    assert "<script" not in box
    assert box.count("<div") == box.count("</div>") == 1
    assert told(box)[0]["lines"][0]["label"] == HOSTILE


def test_the_page_carries_the_licence_of_what_it_carries() -> None:
    _, scripts, _ = assets()
    assert "The MIT License (MIT)" in scripts
    assert "Leon Sorokin" in scripts


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with a loss plot, a schedule, and two runs compared; the second of them is shorter."""
    metrics, curves = training(100), [("A run", training(100)), ("B run", training(60, slower=2))]
    style, scripts, policy = assets()
    boxes = (
        hoverable(plots.loss_curve(metrics, True), [loss_chart(metrics)], "steps"),
        hoverable(plots.timeline(metrics, True), schedule_charts(metrics), "steps"),
        hoverable(curves_svg(curves, True), [curves_chart(curves)]),
    )
    own = (Path(plots.__file__).parent / "style.html").read_text(encoding="utf-8")
    path = tmp_path / "page.html"
    path.write_text(
        '<!DOCTYPE html><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">{own}{style}'
        f"<main>{''.join(boxes)}</main><script>window.intruder = true</script>{scripts}",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def open_page(browser: Any, page: Path) -> Callable[..., Any]:
    """Opens the page; it must neither ask for anything nor meet an error of its own."""

    def open_it(**options: Any) -> Any:
        opened = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        opened.asked, opened.errors = [], []
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.goto(page.as_uri())
        return opened

    return open_it


def point_at(opened: Any, chart: int, share: float) -> str:
    """Move the pointer over a chart; the text of its legend then."""
    over = opened.locator(".u-over").nth(chart)
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    over.hover(position={"x": share * (box["width"] - 1), "y": box["height"] / 2})
    opened.wait_for_timeout(100)
    return opened.locator(".u-legend").nth(chart).inner_text()


@pytest.mark.ui
def test_the_pointer_tells_the_figures_of_a_step(open_page: Callable[..., Any]) -> None:
    opened, metrics = open_page(), training(100)
    assert opened.locator("svg:visible").count() == 0
    legend = point_at(opened, 0, 49 / 99)
    for figure in ("50", metrics["loss"][49], running_mean(metrics["loss"])[49], metrics["val_nats"][49]):
        shown = figure if isinstance(figure, str) else f"{float(f'{figure:.6g}'):.4f}"
        assert shown in legend, (shown, legend)
    assert "0.5000" in opened.locator(".u-legend").nth(1).inner_text()  # the schedule, at the same step
    runs = point_at(opened, 3, 69 / 99)
    assert "B run" in runs
    assert re.search(r"B run\D*–", runs)  # it ended at step 60
    opened.get_by_label("seconds of training").check()
    assert re.search(r"B run\W*3\.", point_at(opened, 3, 0.9))  # and took twice as long a step
    assert opened.errors == []
    assert len(opened.asked) == 1
    assert opened.evaluate("window.intruder") is None  # no script but those that the policy names


@pytest.mark.ui
def test_a_part_that_was_enlarged_is_shown_whole_again_by_a_double_click(
    open_page: Callable[..., Any],
) -> None:
    opened = open_page()
    before = opened.locator(".uplot canvas").first.screenshot()
    box = opened.locator(".u-over").first.bounding_box()
    opened.mouse.move(box["x"] + 200, box["y"] + 50)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 400, box["y"] + 50, steps=4)
    opened.mouse.up()
    opened.mouse.move(0, 0)
    assert opened.locator(".uplot canvas").first.screenshot() != before
    opened.mouse.dblclick(box["x"] + 300, box["y"] + 50)
    opened.mouse.move(0, 0)
    opened.wait_for_timeout(200)
    assert opened.locator(".uplot canvas").first.screenshot() == before


@pytest.mark.ui
def test_dark_pages_have_dark_plots_also_when_the_reader_changes_over(open_page: Callable[..., Any]) -> None:
    opened = open_page(color_scheme="light")
    canvas = opened.locator(".uplot canvas").first
    light = canvas.screenshot()
    opened.emulate_media(color_scheme="dark")
    opened.wait_for_timeout(200)
    changed, dark = canvas.screenshot(), open_page(color_scheme="dark").locator(".uplot canvas").first
    assert changed == dark.screenshot() != light


@pytest.mark.ui
def test_without_javascript_and_on_paper_the_plots_stay(open_page: Callable[..., Any]) -> None:
    assert open_page(java_script_enabled=False).locator(".hover > svg:visible").count() == 3
    printed = open_page()
    printed.emulate_media(media="print")
    assert printed.locator(".hover > svg:visible").count() == 3
    assert printed.locator(".uplot:visible").count() == 0
