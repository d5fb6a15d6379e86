"""Prefect's server with two repairs for its SQLite database. PostgreSQL needs neither.

`python -m flows.server.prefect_server` takes the commands of `prefect`, such as `server start`.

1. A statement that failed stays open until its cursor is dropped. Dropping it waits for the connection's
   mutex, and a connection that waits for the write lock holds that mutex for up to 60 s. When the thread of
   the event loop drops it, no transaction can commit, and the server stands still for those 60 s. Here such a
   statement is closed at once, in the connection's own thread.
2. Most transactions read, then write. SQLite refuses the write if another transaction came between: the
   server answers 503, and the client waits 2 s before it asks again. After four refusals an automation drops
   its event, and a finished run looks like one whose heartbeats stopped. Here transactions take the write
   lock before they read.
"""

import runpy
import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiosqlite
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


async def _execute(self: aiosqlite.Cursor, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return await self._conn._execute(_closing_on_failure, self._cursor, call, *args, **options)


def _closing_on_failure(cursor: sqlite3.Cursor, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return call(*args, **options)
    except BaseException:
        cursor.close()
        raise


_begin = AioSqliteConfiguration.begin_transaction


def _begin_with_write_lock(
    self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = True
) -> AbstractAsyncContextManager[AsyncSessionTransaction]:
    return _begin(self, session, with_for_update=True)


def repair() -> None:
    """Put both repairs into this process."""
    aiosqlite.Cursor._execute = _execute  # type: ignore[method-assign, assignment]
    AioSqliteConfiguration.begin_transaction = _begin_with_write_lock  # type: ignore[method-assign, assignment]


def create_app() -> Any:
    """The server as an ASGI application, for uvicorn."""
    from prefect.server.api.server import create_app as create

    repair()
    return create()


if __name__ == "__main__":
    repair()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
