"""Messages about the ends of runs: Prefect's automation, its action SendNotification, and a block an address.

A run tells its own end by an event (`flows.tasks.run_end`). One that is killed cannot: Prefect's event
`Crashed` stands for it.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from prefect.blocks.notifications import SlackWebhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from pydantic import SecretStr

from flows import TOLD_FLOWS
from flows.results.endings import EVENTS, STAGE

log = logging.getLogger(__name__)

AUTOMATION = "Fairway: messages when runs end"
BLOCK_PREFIX = "fairway-notify-"
CRASHED = "prefect.flow-run.Crashed"
ONE_END_SECONDS = 30
"""A worker and the process of a run may both say that it crashed: within this time they mean one crash."""

_RUN = "\nRun: {{ flow_run|ui_url }}"
_STAGE = f"flow_run.labels['{STAGE}']"


def settle_messages(addresses: Sequence[str] | None) -> None:
    """As `send_messages_to`; None leaves what was set before, and says what that is."""
    if addresses is None:
        _say_who_is_told()
    else:
        send_messages_to(addresses)


def send_messages_to(addresses: Sequence[str]) -> None:
    """Send the end of each run to these addresses of Apprise, and no longer to earlier ones; none: to nobody.

    An automation of this name that a user changed is replaced. The server keeps addresses as secrets, each in
    a block of Prefect's type Slack Webhook: it is the only one that takes any address of Apprise.
    """
    with get_client(sync_client=True) as client:
        blocks = [_save(number, address) for number, address in enumerate(addresses, 1)]
        present = client.read_automations_by_name(AUTOMATION)
        for automation in present if not blocks else present[1:]:
            client.delete_automation(automation.id)
        if blocks and present:
            client.update_automation(present[0].id, _automation(blocks))
        elif blocks:
            client.create_automation(_automation(blocks))
        for name, block in _saved(client).items():
            if block not in blocks:
                log.info("removed the block %s", name)
                client.delete_block_document(block)
    log.info("messages when runs end: %s", f"to {len(blocks)} addresses" if blocks else "to nobody")


def _say_who_is_told() -> None:
    """Say in a log line whom an earlier `fairway up --notify` made the server send messages to."""
    with get_client(sync_client=True) as client:
        for automation in client.read_automations_by_name(AUTOMATION):
            where = f"to {len(automation.actions)} addresses" if automation.enabled else "switched off"
            log.info(
                "messages when runs end: %s, as set before (--notify ADDRESS replaces, --notify off ends)",
                where,
            )


def _save(number: int, address: str) -> UUID:
    saved = SlackWebhook(url=SecretStr(address)).save(f"{BLOCK_PREFIX}{number}", overwrite=True)
    assert isinstance(saved, UUID)  # not a coroutine: nothing here is asynchronous
    return saved


def _saved(client: SyncPrefectClient) -> dict[str, UUID]:
    """The blocks of ours on the server, by name."""
    slug = SlackWebhook.get_block_type_slug()
    documents = client.read_block_documents_by_type(slug)
    return {item.name: item.id for item in documents if item.name and item.name.startswith(BLOCK_PREFIX)}


def _by_event(told: str, crashed: str) -> str:
    """A template of Prefect's: `told` for an event of ours, `crashed` for Prefect's.

    A part of a run, as one seed of several, crashes with it and has no message: Apprise sends no empty one.
    """
    return (
        f"{{% if event.event != '{CRASHED}' %}}{told}"
        f"{{% elif not flow_run.parent_task_run_id %}}{crashed}{{% endif %}}"
    )


def _automation(blocks: Sequence[UUID]) -> AutomationCore:
    trigger = EventTrigger(
        expect={*EVENTS, CRASHED},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification(
            {"prefect.resource.role": "flow", "prefect.resource.name": list(TOLD_FLOWS)}
        ),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(seconds=ONE_END_SECONDS),
    )
    subject = _by_event("{{ event.payload.subject }}", "Fairway: {{ flow_run.name }} crashed")
    stage = f"{{% if {_STAGE} %}}Stage: {{{{ {_STAGE} }}}}\n{{% endif %}}"
    body = _by_event(f"{{{{ event.payload.text }}}}{_RUN}", f"{stage}{{{{ flow_run.state.message }}}}{_RUN}")
    actions = [SendNotification(block_document_id=block, subject=subject, body=body) for block in blocks]
    return AutomationCore(
        name=AUTOMATION,
        description="Made by `fairway up --notify`; the next one replaces it.",
        trigger=trigger,
        actions=actions,
    )
