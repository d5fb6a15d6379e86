"""Which automation and blocks `fairway up --notify` leaves on a server, and what its messages say."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prefect.blocks.notifications import SlackWebhook
from prefect.client.orchestration import SyncPrefectClient, get_client

from flows import FLOW_NAMES, TOLD_FLOWS
from flows.server import notifications
from flows.server.notifications import AUTOMATION, CRASHED, settle_messages

FIRST, SECOND = "json://127.0.0.1:9/first", "ntfys://ntfy.sh/second"


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    """A client of a server on which nobody is told, before and after the test."""
    settle_messages(())
    with get_client(sync_client=True) as client:
        yield client
    settle_messages(())


def _told(client: SyncPrefectClient) -> list[str]:
    """The addresses that messages go to; no block is left that no message needs."""
    automations = client.read_automations_by_name(AUTOMATION)
    actions = [action for automation in automations for action in automation.actions]
    blocks = notifications._saved(client)
    assert {action.block_document_id for action in actions} == set(blocks.values())  # type: ignore[union-attr]
    loaded = [SlackWebhook.load(name) for name in sorted(blocks)]
    return [block.url.get_secret_value() for block in loaded]  # type: ignore[union-attr]


def test_other_addresses_replace_the_earlier_ones(client: SyncPrefectClient) -> None:
    settle_messages((FIRST, SECOND))
    assert _told(client) == [FIRST, SECOND]
    settle_messages((SECOND,))
    assert _told(client) == [SECOND]


def test_no_address_leaves_the_earlier_ones_and_says_so(
    client: SyncPrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settle_messages((FIRST,))
    settle_messages(None)
    assert _told(client) == [FIRST]
    assert "to 1 addresses, as set before" in caplog.text
    assert FIRST not in caplog.text


def test_off_leaves_neither_automation_nor_block(client: SyncPrefectClient) -> None:
    settle_messages((FIRST,))
    settle_messages(())
    assert _told(client) == []
    assert client.read_automations_by_name(AUTOMATION) == []


def _rendered(event: str, parent: str | None = None) -> tuple[str, str]:
    """Subject and body as the server makes them."""
    from prefect.server.utilities.user_templates import (
        _sync_template_environment,
        render_user_template_sync,
    )

    [action] = notifications._automation([_ID]).actions
    _sync_template_environment.filters["ui_url"] = lambda run: f"http://pages/{run.name}"
    run = SimpleNamespace(
        name="demo-seed1",
        parent_task_run_id=parent,
        labels={"fairway.stage": "train"},
        state=SimpleNamespace(message="No heartbeat"),
    )
    seen: dict[str, Any] = {
        "event": SimpleNamespace(event=event, payload={"subject": "the subject", "text": "the text"}),
        "flow_run": run,
    }
    subject, body = (render_user_template_sync(text, seen) for text in (action.subject, action.body))  # type: ignore[union-attr]
    return subject, body


_ID = UUID("00000000-0000-0000-0000-000000000001")


def test_a_run_that_ended_by_itself_has_told_the_words() -> None:
    assert _rendered("fairway.run.finished") == ("the subject", "the text\nRun: http://pages/demo-seed1")


def test_a_killed_run_is_told_with_its_stage() -> None:
    assert _rendered(CRASHED) == (
        "Fairway: demo-seed1 crashed",
        "Stage: train\nNo heartbeat\nRun: http://pages/demo-seed1",
    )


def test_a_part_of_a_killed_run_has_no_message() -> None:
    assert _rendered(CRASHED, parent="its run") == ("", "")


def test_the_flows_whose_ends_are_told_exist() -> None:
    assert set(TOLD_FLOWS) <= set(FLOW_NAMES)
