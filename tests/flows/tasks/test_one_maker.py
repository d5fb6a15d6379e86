"""Runs of several machines that need the same result: one makes it, the others wait."""

import logging
import threading
import time
from contextvars import copy_context

import httpx
import pytest
from prefect.client.orchestration import get_client

from flows.tasks import one_maker as module
from flows.tasks.one_maker import one_maker

KEY = "0123456789abcdef" * 4


def _limits() -> list[str]:
    with get_client(sync_client=True) as client:
        return [limit.name for limit in client.read_global_concurrency_limits(limit=100)]


def test_a_second_maker_waits_until_the_first_has_ended(api: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=module.log.name)
    inside, order = threading.Event(), list[str]()

    def first() -> None:
        with one_maker("quantize", KEY):
            inside.set()
            time.sleep(1)
            order.append("first made it")

    maker = threading.Thread(target=copy_context().run, args=(first,))
    maker.start()
    assert inside.wait(30)
    with one_maker("quantize", KEY):
        order.append("second goes on")
    maker.join(30)
    assert order == ["first made it", "second goes on"]
    assert "quantize: another run makes this result; waiting for it" in caplog.text
    assert "WARNING" not in caplog.text
    assert not [name for name in _limits() if KEY[:32] in name]


def test_another_result_does_not_wait(api: str) -> None:
    with one_maker("quantize", KEY), one_maker("quantize", KEY[::-1]), one_maker("merge", KEY):
        assert len([name for name in _limits() if name.startswith("fairway ")]) == 3


def test_a_stage_that_fails_leaves_no_limit(api: str) -> None:
    with pytest.raises(ZeroDivisionError), one_maker("quantize", KEY):
        1 / 0  # noqa: B018
    assert not [name for name in _limits() if KEY[:32] in name]


def test_without_an_answer_of_the_server_the_result_is_made_all_the_same(
    api: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def silent(**_: object) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(module, "get_client", silent)
    made = False
    with one_maker("quantize", KEY):
        made = True
    assert made
    assert "quantize: another run may make the same: the server gave no slot (no route)" in caplog.text
