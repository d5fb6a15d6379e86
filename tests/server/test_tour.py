"""The owner's three uses by clicking, in a real browser.

With FAIRWAY_SCREENSHOTS=docs/images the README's pictures are taken.

The browser may reach nothing but this machine, and the pages must not even try.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

pytestmark = pytest.mark.ui

RUN_SECONDS = 200
expect.set_options(timeout=15_000)


@pytest.fixture
def page(browser: Any, served: Any) -> Iterator[Page]:
    """A page that records every request to another machine; there must be none."""
    outside: list[str] = []
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    opened.set_default_timeout(15_000)
    opened.on(
        "request",
        lambda request: (
            None if request.url.startswith((served.url, "data:", "blob:")) else outside.append(request.url)
        ),
    )
    yield opened
    opened.close()
    assert outside == []


def picture(page: Page, name: str) -> None:
    folder = os.environ.get("FAIRWAY_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(800)  # animations of the page
        page.screenshot(path=Path(folder) / f"{name}.png")


def form(page: Page, served: Any, deployment: str) -> None:
    """From the list of deployments to the form of a custom run, by clicking."""
    page.goto(f"{served.url}/deployments")
    page.get_by_role("link", name=deployment, exact=True).first.click()  # the second is the flow
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(page.get_by_text("Parameters", exact=True)).to_be_visible()


def field(page: Page, name: str) -> Locator:
    return page.locator(".schema-form-property", has=page.get_by_text(f"{name} (Optional)", exact=True)).last


def choose(page: Page, name: str, *options: str) -> None:
    button, shown = (
        field(page, name).locator("button.p-select-button__control"),
        page.locator(".p-select-option"),
    )
    # the label around the button gives it the click a second time, which closes the list again
    button.click()
    for key in ("ArrowDown", "Enter", "Enter"):
        page.wait_for_timeout(600)
        if shown.count():
            break
        page.keyboard.press(key)
    for option in options:
        shown.filter(has_text=re.compile(rf"^\s*{option}\s*$")).click()
    if shown.count():  # a list of several choices stays open until something else is clicked
        page.get_by_text("Parameters", exact=True).click()
        expect(shown).to_have_count(0)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tablist").get_by_text(name, exact=True).click()


def submit(page: Page) -> str:
    """Start the run; returns its id. SQLite answers 503 when it is busy, and one clicks again."""
    for _ in range(5):
        with page.expect_response(re.compile("create_flow_run")) as answer:
            page.get_by_role("button", name="Submit").click()
        if answer.value.status != 503:
            break
        page.wait_for_timeout(1000)
    assert answer.value.status == 201, answer.value.text()
    return answer.value.json()["id"]


def test_start_a_run_from_its_form_and_follow_it(page: Page, served: Any) -> None:
    form(page, served, "pipeline")
    choose(page, "preset", "smoke")
    picture(page, "form-pipeline")
    field(page, "max_steps").locator("input").fill("-1")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("-1 is less than the minimum of 1").first).to_be_visible()
    field(page, "max_steps").locator("input").scroll_into_view_if_needed()
    picture(page, "form-refused")

    field(page, "max_steps").locator("input").fill("60")
    run_id = submit(page)
    page.goto(f"{served.url}/runs/flow-run/{run_id}")
    expect(page.get_by_text("step 60/60").first).to_be_visible(timeout=RUN_SECONDS * 1000)
    served.wait(run_id, RUN_SECONDS)
    expect(page.locator(".state-badge", has_text="Completed").first).to_be_visible(timeout=30_000)
    picture(page, "run")
    tab(page, "Task Runs")
    expect(page.get_by_text(re.compile("^train-smoke-seed1337-")).first).to_be_visible()
    tab(page, "Artifacts")
    expect(page.get_by_text("byte-budget").first).to_be_visible()
    page.get_by_text("byte-budget").first.scroll_into_view_if_needed()
    picture(page, "artifacts")
    result = served.artifacts(run_id)["result"]
    page.goto(f"{served.url}/artifacts/artifact/{result['id']}")
    expect(page.get_by_text("val_bpb quantized, sliding").first).to_be_visible()
    picture(page, "result")
    page.goto(f"{served.url}/artifacts/artifact/{served.artifacts(run_id)['loss-curve']['id']}")
    curve = page.get_by_role("img", name="loss")
    expect(curve).to_be_visible()
    assert curve.evaluate("image => image.naturalWidth") > 300


def test_requantize_with_other_bits_and_read_the_comparison(page: Page, served: Any, two_runs: Any) -> None:
    form(page, served, "requantize")
    field(page, "run").locator("textarea").fill(two_runs[0]["name"])
    choose(page, "bits", "int3", "int5")
    picture(page, "form-requantize")
    run_id = submit(page)
    assert served.wait(run_id, RUN_SECONDS)["state_name"] == "Completed"
    artifacts = served.artifacts(run_id)
    page.goto(f"{served.url}/artifacts/artifact/{artifacts['comparison']['id']}")
    for text in ("the earlier run", "int3", "int5"):
        expect(page.get_by_text(text).first).to_be_visible()
    picture(page, "comparison")
    page.goto(f"{served.url}/artifacts/artifact/{artifacts['comparison-plot']['id']}")
    plot = page.get_by_role("img", name="comparison")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.naturalWidth") > 300
    picture(page, "comparison-plot")


def test_meet_a_byte_limit(page: Page, served: Any, two_runs: Any) -> None:
    form(page, served, "requantize")
    field(page, "run").locator("textarea").fill(two_runs[0]["name"])
    field(page, "limit_bytes").locator("input").fill("300000")
    run_id = submit(page)
    assert served.wait(run_id, RUN_SECONDS)["state_name"] == "Completed"
    page.goto(f"{served.url}/artifacts/artifact/{served.artifacts(run_id)['comparison']['id']}")
    expect(page.get_by_text("at most 300,000 bytes").first).to_be_visible()


def test_draw_the_frontier_of_a_run(page: Page, served: Any, two_runs: Any) -> None:
    form(page, served, "frontier")
    field(page, "run").locator("textarea").fill(two_runs[0]["name"])
    for place, scheme in enumerate(("reference", "ecsq:0.01")):
        field(page, "schemes").get_by_role("button", name="Add").click()
        field(page, "schemes").locator("textarea").nth(place).fill(scheme)
    picture(page, "form-frontier")
    run_id = submit(page)
    assert served.wait(run_id, RUN_SECONDS)["state_name"] == "Completed"
    artifacts = served.artifacts(run_id)
    page.goto(f"{served.url}/artifacts/artifact/{artifacts['frontier']['id']}")
    for text in ("not quantized", "the run itself", "reference", "ecsq:0.01"):
        expect(page.get_by_text(text).first).to_be_visible()
    page.goto(f"{served.url}/artifacts/artifact/{artifacts['frontier-plot']['id']}")
    plot = page.get_by_role("img", name="frontier")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.naturalWidth") > 300
    picture(page, "frontier-plot")


def test_see_the_next_seed_validation_and_what_the_last_one_concluded(
    page: Page, served: Any, two_runs: Any
) -> None:
    for _ in range(2):  # seed 7 is in the store already, seed 8 is trained
        run_id = served.start_run(
            "seed-validation", preset="smoke", ledger="browser", first_seed=7, max_seeds=2, mark_nats=2.8
        )
        served.wait(run_id, RUN_SECONDS)
    page.goto(f"{served.url}/deployments/deployment/{served.deployment('seed-validation')['id']}")
    tab(page, "Upcoming")
    expect(page.get_by_text(re.compile("Scheduled for ")).first).to_be_visible(timeout=90_000)
    picture(page, "seed-validation-schedule")
    page.goto(f"{served.url}/runs/flow-run/{run_id}")
    tab(page, "Artifacts")
    page.locator("a[href*='/artifacts/artifact/']", has_text="seed-validation").first.click()
    expect(page.get_by_text("95 % interval").first).to_be_visible()
    expect(page.get_by_text(re.compile("beaten")).first).to_be_visible()
    picture(page, "seed-validation")
