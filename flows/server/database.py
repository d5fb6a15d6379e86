"""The database of the Prefect server that `fairway up` starts: SQLite in Prefect's home, or PostgreSQL."""

import asyncio
import os

from schemas.errors import SpecError

OURS = "FAIRWAY_DATABASE"
PREFECTS = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
EXAMPLE = "postgresql+asyncpg://USER@HOST/NAME"
_ANSWER_SECONDS = 5.0


def server_database(given: str | None) -> dict[str, str]:
    """The variables that give the server `given`, else the database of FAIRWAY_DATABASE or of Prefect's own
    variable; empty: a file in Prefect's home.

    The variables of Prefect leave `os.environ`, so that only the server gets a password. PGPASSWORD and
    ~/.pgpass count too. Raises SpecError for a password on the command line, which everybody on the machine
    can read, for an address that is none, and for a database that does not answer. No message repeats a
    password.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    own = [os.environ.pop(name, "") for name in PREFECTS]
    name, text = ("--database", given) if given else (OURS, os.environ.pop(OURS, ""))
    if not text:
        name, text = next(((key, value) for key, value in zip(PREFECTS, own, strict=True) if value), ("", ""))
    if not text:
        return {}
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise SpecError(f"{name}: is no address of a database. Give one as {EXAMPLE}") from None
    if name == "--database" and (url.password or "password" in url.query):
        raise SpecError(
            f"--database = {url.render_as_string()}: everybody on this machine can read a password on the "
            f"command line. Put the whole address into {OURS}, or the password into PGPASSWORD or ~/.pgpass"
        )
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+asyncpg")
    if url.drivername not in ("postgresql+asyncpg", "sqlite+aiosqlite"):
        raise SpecError(
            f"{name} = {url.render_as_string()}: Prefect takes PostgreSQL ({EXAMPLE}) or SQLite "
            "(sqlite+aiosqlite:////PATH)"
        )
    whole = url.render_as_string(hide_password=False)
    if url.drivername == "postgresql+asyncpg" and (problem := asyncio.run(_problem(whole))):
        shown = problem.replace(url.password, "***") if url.password else problem
        raise SpecError(
            f"{name} = {url.render_as_string()}: the database does not answer: {shown}. Start it, create "
            f"user and database, or correct the address; a password goes into {OURS}, PGPASSWORD or ~/.pgpass"
        )
    return {PREFECTS[0]: whole}


async def _problem(url: str) -> str | None:
    """Why no connection comes about; None if one does."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url, connect_args={"timeout": _ANSWER_SECONDS})
    try:
        async with engine.connect():
            return None
    except Exception as error:  # noqa: BLE001  (of asyncpg, of SQLAlchemy or of the system, of any type)
        return " ".join(str(error).split()) or type(error).__name__
    finally:
        await engine.dispose()
