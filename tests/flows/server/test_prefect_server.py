"""Prefect's server on SQLite: it never stands still while several runs report, and loses no event."""

import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import aiosqlite
import httpx
import pytest

from flows.server import prefect_server
from flows.server.environment import prefect_api

WAIT_SECONDS = 6


@pytest.fixture
def repaired_cursors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for the test."""
    monkeypatch.setattr(aiosqlite.Cursor, "_execute", prefect_server._execute)


async def _held_up_seconds(path: Path) -> float:
    """How long the event loop stands still when it drops a failed statement of a connection that waits."""
    async with (
        aiosqlite.connect(path, isolation_level=None) as writer,
        aiosqlite.connect(path, isolation_level=None, timeout=WAIT_SECONDS) as waiter,
    ):
        await writer.execute("PRAGMA journal_mode = WAL")
        await writer.execute("CREATE TABLE kept (value)")
        await writer.execute("INSERT INTO kept VALUES (0)")
        # The waiter reads, another connection writes, and the waiter's own write fails at once.
        await waiter.execute("BEGIN")
        await waiter.execute_fetchall("SELECT * FROM kept")
        await writer.execute("INSERT INTO kept VALUES (1)")
        failed = await waiter.cursor()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await failed.execute("INSERT INTO kept VALUES (2)")
        await waiter.execute("ROLLBACK")
        await writer.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(waiter.execute("INSERT INTO kept VALUES (3)"))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        del failed
        gc.collect()  # the error and its frames refer to each other
        held_up = time.monotonic() - began
        await writer.execute("COMMIT")
        await waiting
        return held_up


@pytest.mark.usefixtures("repaired_cursors")
def test_a_failed_statement_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    assert asyncio.run(_held_up_seconds(tmp_path / "a.db")) < WAIT_SECONDS / 2


def test_a_transaction_takes_the_write_lock_before_it_reads(tmp_path: Path) -> None:
    """In a process of its own: Prefect keeps its engines for the life of a process."""
    path = tmp_path / "prefect.db"
    program = f"""
import asyncio, sqlite3
import sqlalchemy
from flows.server import prefect_server
from prefect.server.events import triggers

prefect_server.repair()

async def main():
    async with triggers.automations_session(begin_transaction=True) as session:
        await session.execute(sqlalchemy.text("SELECT 1"))
        try:
            sqlite3.connect({str(path)!r}, timeout=0).execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            print(error)
    async with triggers.automations_session() as session:
        await session.execute(sqlalchemy.text("SELECT 1"))
        sqlite3.connect({str(path)!r}, timeout=0).execute("BEGIN IMMEDIATE")
        print("free")

asyncio.run(main())
"""
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{path}",
    }
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert said.stdout.split("\n")[:2] == ["database is locked", "free"], said.stderr[-2000:]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with prefect_api(tmp_path) as url:
        yield url


def test_eight_runs_report_at_once_and_the_server_answers_all_the_while(server: str) -> None:
    """Without the repair it stood still for 60 s within the first hundred requests."""
    flow = httpx.post(f"{server}/flows/", json={"name": "of the test"}).json()["id"]
    end = time.monotonic() + 8
    slowest = [0.0] * 8
    numbers = count()

    def report(place: int) -> None:
        with httpx.Client(base_url=server, timeout=100) as client:

            def send(path: str, **body: Any) -> Any:
                while True:
                    began = time.monotonic()
                    try:
                        answer = client.post(path, json=body)
                    except (httpx.ReadError, httpx.RemoteProtocolError):
                        continue  # uvicorn closes connections at times; Prefect's client tries again too
                    slowest[place] = max(slowest[place], time.monotonic() - began)
                    if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                        return answer.raise_for_status().json()

            while time.monotonic() < end:
                run = send("/flow_runs/", flow_id=flow, state={"type": "PENDING"})["id"]
                for state in ("RUNNING", "COMPLETED"):
                    send(f"/flow_runs/{run}/set_state", state={"type": state}, force=True)
                task = {"task_key": "of the test", "dynamic_key": str(next(numbers))}
                send("/task_runs/", flow_run_id=run, state={"type": "RUNNING"}, **task)

    reporting = [threading.Thread(target=report, args=(place,)) for place in range(8)]
    for thread in reporting:
        thread.start()
    for thread in reporting:
        thread.join()
    assert all(slowest), "a thread sent nothing"
    assert max(slowest) < 20
