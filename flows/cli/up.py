"""Command `fairway up`: start server, deployments and worker."""

import os
import sys
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


@app.command()
def up(
    port: Annotated[
        int,
        typer.Option(
            min=1,
            max=65_534,
            help="port of the Prefect server on the loopback interface; the next is for reports",
        ),
    ] = 4200,
    heartbeat_seconds: Annotated[
        int,
        typer.Option(
            min=30, max=86_400, help="seconds between a run's heartbeats; after three it counts as crashed"
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
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Start the Prefect server, deployments and a worker, and print the address for the browser.

    Ctrl-C ends all of them.
    """
    with clear_errors(debug):
        from rich.console import Console

        from flows.cli.terminal import log_to
        from flows.server.up import everything_up, one_interrupt, wait_for_the_end
        from schemas.printable import printable
        from stages.store.store import open_store_at

        addresses = channels(notify or ())
        os.environ.pop(VARIABLE, None)  # a secret that no process of a run needs
        root = open_store_at(store, remote).root
        if remote:
            os.environ["FAIRWAY_REMOTE"] = remote  # for the worker's runs
        messages: Console = make_console(stderr=True)
        one_interrupt()
        try:
            with log_to(messages), everything_up(root, port, heartbeat_seconds, addresses) as url:
                address = url.removesuffix("/api")
                if json:
                    print_json({"ui": address, "api": url, "store": str(root)})
                    sys.stdout.flush()
                else:
                    typer.echo(
                        f"ready: {address}   (store {printable(str(root))}; Ctrl-C ends server, "
                        "worker and runs)"
                    )
                    typer.echo(f"for runs from a terminal: export PREFECT_API_URL={url}")
                wait_for_the_end()
        except KeyboardInterrupt:
            pass
        typer.echo("stopped", err=True)
