"""Command `fairway up`: start server, deployments and worker, or a worker alone."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.base import (
    DEFAULT_STORE,
    Debug,
    Json,
    RemoteStore,
    StoreFolder,
    app,
    clear_errors,
    make_console,
    print_json,
)
from flows.server.channels import VARIABLE, channels

log = logging.getLogger(__name__)

_OF_SERVER = ("port", "heartbeat_seconds", "host", "database", "notify")


@app.command()
def up(
    context: typer.Context,
    port: Annotated[
        int,
        typer.Option(
            min=1,
            max=65_534,
            help="port of the Prefect server; the next is for reports",
        ),
    ] = 4200,
    heartbeat_seconds: Annotated[
        int,
        typer.Option(
            min=30, max=86_400, help="seconds between a run's heartbeats; after three it counts as lost"
        ),
    ] = 180,
    notify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            envvar=VARIABLE,
            show_envvar=True,
            help="where messages go when runs end: https://ntfy.sh/TOPIC or any address of Apprise; or off. "
            "May be repeated",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="address on which server and reports listen, of a network that only you can reach"),
    ] = "127.0.0.1",
    database: Annotated[
        str | None,
        typer.Option(
            help="the server's database, postgresql+asyncpg://USER@HOST/NAME; with a password only in "
            "FAIRWAY_DATABASE"
        ),
    ] = None,
    worker_only: Annotated[
        bool, typer.Option("--worker-only", help="start only a worker, for the server of another machine")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            help="with --worker-only: the server's address, as http://10.0.0.1:4200 (or PREFECT_API_URL)"
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="runs that the worker takes at a time; with several machines 1, else all"
        ),
    ] = None,
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Start the Prefect server, deployments and a worker, and print the address for the browser.

    Ctrl-C ends all of them.
    """
    with clear_errors(debug):
        from flows.cli.live import log_to
        from flows.server.addresses import LOOPBACK, api_address, check_host
        from flows.server.up import Server, everything_up, one_interrupt, worker_up
        from schemas.errors import SpecError
        from stages.store.store import open_store_at

        addresses = channels(notify or ())
        os.environ.pop(VARIABLE, None)  # a secret that no process of a run needs
        if worker_only:
            _refuse_options_of_server(context)
            url = api_address(server)
        elif server:
            raise SpecError("--server: is for --worker-only. Give both, or set PREFECT_API_URL")
        check_host(host)
        root = open_store_at(store, remote).root
        if remote:
            os.environ["FAIRWAY_REMOTE"] = remote  # for the worker's runs
        console = make_console(stderr=True)
        one_interrupt()
        try:
            with log_to(console):
                if worker_only or host != LOOPBACK:
                    _warn(host, port, remote, worker_only)
                if worker_only:
                    with worker_up(root, url, runs or 1):
                        _wait(url, root, json, "this worker and its runs")
                else:
                    wanted = Server(port, heartbeat_seconds, host, database, addresses)
                    with everything_up(root, wanted, runs) as url:
                        _wait(url, root, json, "server, worker and runs", join=host != LOOPBACK)
        except KeyboardInterrupt:
            pass
        typer.echo("stopped", err=True)


def _refuse_options_of_server(context: typer.Context) -> None:
    from schemas.errors import SpecError

    for name in _OF_SERVER:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise SpecError(f"--{option}: belongs to the server. With --worker-only give it there")


def _warn(host: str, port: int, remote: str | None, worker_only: bool) -> None:
    """Say what several machines need that one does not."""
    from flows.server.addresses import LOOPBACK

    if not remote:
        log.warning(
            "no remote store: the machines do not share results, and a run whose machine dies begins again. "
            "Give each machine the same --remote or FAIRWAY_REMOTE"
        )
    if host != LOOPBACK and not worker_only:
        log.warning(
            "whoever reaches %s, ports %d and %d, can start runs and read files as this user: keep that "
            "network private",
            host,
            port,
            port + 1,
        )
        if not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
            log.warning("no login is asked for: PREFECT_SERVER_API_AUTH_STRING=user:password sets one")


def _wait(url: str, root: Path, json: bool, ended: str, join: bool = False) -> None:
    """Print the addresses, then wait for Ctrl-C."""
    from flows.server.up import wait_for_the_end
    from schemas.printable import printable

    address = url.removesuffix("/api")
    if json:
        print_json({"ui": address, "api": url, "store": str(root)})
        sys.stdout.flush()
    else:
        typer.echo(f"ready: {address}   (store {printable(str(root))}; Ctrl-C ends {ended})")
        typer.echo(f"for runs from a terminal: export PREFECT_API_URL={url}")
        if join:
            typer.echo(f"for another machine: fairway up --worker-only --server {address}")
    wait_for_the_end()
