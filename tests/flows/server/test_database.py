"""The server's database: where its address comes from, and that no password is shown or passed on."""

import os

import pytest

from flows.server import database
from flows.server.database import server_database
from schemas.errors import SpecError

SECRET = "a-secret-that-nobody-may-see"
NOBODY = f"postgresql://fairway:{SECRET}@127.0.0.1:1/fairway"


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (database.OURS, *database.PREFECTS):
        monkeypatch.delenv(name, raising=False)


def test_without_an_address_the_server_keeps_its_file() -> None:
    assert server_database(None) == {}


def test_only_the_server_gets_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(database.PREFECTS[1], "sqlite+aiosqlite:////a")
    assert server_database(None) == {database.PREFECTS[0]: "sqlite+aiosqlite:////a"}
    monkeypatch.setenv(database.PREFECTS[1], "sqlite+aiosqlite:////a")
    monkeypatch.setenv(database.OURS, "sqlite+aiosqlite:////b")
    assert server_database(None) == {database.PREFECTS[0]: "sqlite+aiosqlite:////b"}
    assert not {database.OURS, *database.PREFECTS} & os.environ.keys()


def test_a_database_that_does_not_answer_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(database.OURS, NOBODY)
    message = (
        r"FAIRWAY_DATABASE = postgresql\+asyncpg://fairway:\*\*\*@127.0.0.1:1/fairway: .* not answer: .*111"
    )
    with pytest.raises(SpecError, match=message) as caught:
        server_database(None)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NOBODY, "everybody on this machine can read a password on the command line"),
        ("mysql://host/name", "--database = mysql://host/name: Prefect takes PostgreSQL"),
        ("no address", "--database: is no address of a database"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(given: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        server_database(given)
    assert SECRET not in str(caught.value)
