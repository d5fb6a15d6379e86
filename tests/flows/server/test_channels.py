"""Which addresses `fairway up --notify` takes, and that its errors repeat none of them."""

import pytest

from flows.server.channels import channels
from schemas.errors import SpecError

SLACK = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
DISCORD = "https://discord.com/api/webhooks/12345678/abcdefghijabcdefghij"


@pytest.mark.parametrize(
    "address", [SLACK, DISCORD, "https://ntfy.sh/topic", "mailtos://user:word@example.org?to=me@example.org"]
)
def test_the_address_that_a_service_gives_is_taken_as_it_is(address: str) -> None:
    assert channels([address, address]) == (address,)


@pytest.mark.parametrize(
    ("address", "channel"),
    [
        ("http://127.0.0.1:8080/hook", "json://127.0.0.1:8080/hook"),
        ("https://example.org/hook?key=a%20b", "jsons://example.org/hook?-key=a%20b"),
    ],
)
def test_any_other_web_address_is_a_webhook(address: str, channel: str) -> None:
    assert channels([address]) == (channel,)


def test_nothing_leaves_what_was_set_and_off_ends_it() -> None:
    assert channels([]) is None
    assert channels(["off"]) == ()
    with pytest.raises(SpecError, match="give no address beside it"):
        channels(["off", "https://ntfy.sh/topic"])


@pytest.mark.parametrize("address", ["slacc://s3cret/s3cret", "mailto://", "s3cret", "https://"])
def test_an_unknown_form_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(SpecError, match=r"--notify = address 2 \(.*\): no channel") as refused:
        channels(["https://ntfy.sh/topic", address])
    assert "s3cret" not in str(refused.value)
