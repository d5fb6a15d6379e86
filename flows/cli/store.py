"""Maintenance commands for the store: fairway gc | verify."""

from typing import Annotated

import typer

from flows.cli.base import (
    DEFAULT_STORE,
    Debug,
    Json,
    StoreFolder,
    app,
    clear_errors,
    make_console,
    print_json,
)


@app.command()
def gc(
    remove: Annotated[
        bool, typer.Option("--remove", help="remove it; without this option gc only lists it")
    ] = False,
    keep_runs: Annotated[
        int | None, typer.Option(min=0, help="also list all runs but the newest N and those in a ledger")
    ] = None,
    older_than: Annotated[
        float, typer.Option(min=0, help="only list what has not changed for this many hours")
    ] = 24.0,
    store: StoreFolder = DEFAULT_STORE,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List what no run needs, or remove it with --remove. Removes nothing while a run is in progress."""
    with clear_errors(debug):
        from flows.cli.terminal import print_unneeded
        from stages.store.housekeeping import find_unneeded, remove_unneeded
        from stages.store.store import Store

        with Store(store) as opened:
            unneeded = (remove_unneeded if remove else find_unneeded)(opened, keep_runs, older_than)
        if json:
            items = [
                {"path": str(item.path), "num_bytes": item.num_bytes, "reason": item.reason}
                for item in unneeded
            ]
            print_json(
                {"removed": remove, "num_bytes": sum(item.num_bytes for item in unneeded), "items": items}
            )
        else:
            print_unneeded(make_console(), unneeded, opened.root, remove)


@app.command()
def verify(store: StoreFolder = DEFAULT_STORE, json: Json = False, debug: Debug = False) -> None:
    """Read every byte in the store again and list damage; status 1 if there is any."""
    with clear_errors(debug):
        from schemas.printable import printable
        from stages.store.housekeeping import find_damage
        from stages.store.store import Store

        with Store(store) as opened:
            damage = list(find_damage(opened))
        if json:
            print_json({"store": str(opened.root), "damage": damage})
        else:
            for problem in damage:
                typer.echo(printable(problem))
            typer.echo(
                f"{len(damage)} damaged; repeat the same `fairway run` to make it again"
                if damage
                else f"{printable(str(opened.root))}: all sound"
            )
        if damage:
            raise typer.Exit(1)
