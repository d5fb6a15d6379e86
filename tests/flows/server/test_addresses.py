"""Which addresses of a server are taken, and what a refused one is answered with."""

import re

import pytest

from flows.server.addresses import api_address, check_host, in_url
from schemas.errors import SpecError


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("0.0.0.0", "stands for all networks, the public one too"),
        ("::", "stands for all networks"),
        ("203.0.113.4", "This one is refused: Cannot assign requested address"),
        ("my-machine", "no address such as 10.0.0.1"),
    ],
)
def test_an_address_that_is_not_one_of_this_machine_is_refused(host: str, why: str) -> None:
    with pytest.raises(SpecError, match=rf"^--host = {re.escape(host)}: .*{re.escape(why)}"):
        check_host(host)


def test_an_address_of_this_machine_is_taken() -> None:
    check_host("127.0.0.2")
    assert in_url("fd00::2") == "[fd00::2]"
    assert in_url("10.0.0.1") == "10.0.0.1"


def test_the_servers_address_may_be_given_as_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://10.0.0.9:4200/api")
    assert api_address("http://10.0.0.1:4200") == "http://10.0.0.1:4200/api"
    assert api_address("https://the.name/prefect/api/") == "https://the.name/prefect/api"
    assert api_address(None) == "http://10.0.0.9:4200/api"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "--worker-only: needs the server. Give --server or PREFECT_API_URL as http://10.0.0.1:4200"),
        ("10.0.0.1:4200", "--server = 10.0.0.1:4200: is no address of a server"),
        (
            "http://user:secret@host:4200",
            "--server: has a user and a password. Put them into PREFECT",
        ),
    ],
)
def test_what_is_no_address_of_a_server_is_refused(
    given: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        api_address(given)
    assert "secret" not in str(caught.value)
