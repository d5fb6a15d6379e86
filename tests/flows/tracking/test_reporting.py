"""A tracker that hangs, refuses or is cut off: the run says so once, and nothing else happens to it."""

import logging
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from flows.tracking.job import TrackingJob
from flows.tracking.reporting import Reporting, check_tracker, reporting_to
from schemas.errors import SpecError

HANGS = "import time; time.sleep(600)"
REFUSES = "raise SystemExit(1)"
FAILS = """print('{"step": 7}'); print('{"error": "ConnectionError"}'); raise SystemExit(1)"""
CUT_OFF = """
import sys, time
print('{"step": 7}', flush=True); time.sleep(600)
"""
SLOW = """
import sys, time
sys.stdin.read()
for step in range(1, 5):
    print('{"step": %d}' % step, flush=True); time.sleep(0.3)
print('{"step": 4, "closed": true}', flush=True)
"""


def _job(folder: Path) -> TrackingJob:
    return TrackingJob(
        tracker="trackio", name="a run", lines=folder / "metrics.jsonl", folder=folder / "tracker", config={}
    )


@pytest.mark.parametrize(
    ("program", "said", "step"),
    [
        (HANGS, "took nothing for", 0),
        (REFUSES, "trackio ", 0),
        (FAILS, "failed (ConnectionError)", 7),
        (CUT_OFF, "took nothing for", 7),
    ],
)
def test_the_run_goes_on_and_says_so_once(
    program: str, said: str, step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    reporting = Reporting(_job(tmp_path), [sys.executable, "-I", "-c", program])
    reporting.trained(tmp_path / "metrics.parquet")
    assert time.monotonic() - began < 5  # the training does not wait for the tracker
    time.sleep(0.5)
    reporting.end(0.5)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said in warning
    assert f"it has the steps up to {step}." in warning


def test_a_slow_tracker_is_waited_for_while_it_takes_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reporting = Reporting(_job(tmp_path), [sys.executable, "-I", "-c", SLOW])
    reporting.end(1.0)
    assert "trackio has the steps of a run: " in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_tracker_ends_with_a_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.tracking.reporting.WAIT_SECONDS", 1.0)
    monkeypatch.setattr("flows.tracking.reporting.guarded", lambda _: [sys.executable, "-I", "-c", HANGS])
    with suppress(KeyboardInterrupt), reporting_to(_job(tmp_path)) as reporting:
        interrupted = reporting
        raise KeyboardInterrupt
    assert interrupted is not None
    assert interrupted._process.poll() is not None


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("schemas.extras.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"needs the package trackio\. Install it: .* pip install 'trackio"):
        check_tracker("trackio")
    check_tracker(None)
