"""Maintenance commands for the store: fairway gc | verify."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.base import (
    DEFAULT_STORE,
    Debug,
    Json,
    RemoteStore,
    Shared,
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
        float | None,
        typer.Option(min=0, help="hours that something must have lain untouched; 24, with --shared 168"),
    ] = None,
    shared: Shared = False,
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List what no run needs, or remove it with --remove. Removes nothing while a run is in progress."""
    with clear_errors(debug):
        from flows.cli.terminal import print_unneeded, unneeded_json
        from stages.store.housekeeping import OLDER_THAN_HOURS, find_unneeded, remove_unneeded
        from stages.store.store import Store, awaits_store

        if shared:
            root, unneeded = Path(), _unneeded_of_remote(remote, remove, keep_runs, older_than)
        else:
            hours = OLDER_THAN_HOURS if older_than is None else older_than
            root, unneeded = store.expanduser().resolve(), []
            if not awaits_store(store, remote):
                with Store(store) as opened:
                    unneeded = (remove_unneeded if remove else find_unneeded)(opened, keep_runs, hours)
        if json:
            print_json(unneeded_json(unneeded, remove))
        else:
            print_unneeded(make_console(), unneeded, root, remove)


def _unneeded_of_remote(
    remote: str | None, remove: bool, keep_runs: int | None, older_than: float | None
) -> list[Any]:
    from stages.store.store import open_remote_at

    far = open_remote_at(remote)  # first: it says what is missing, should the library be
    from stages.store.remote_housekeeping import (
        OLDER_THAN_HOURS,
        find_unneeded_objects,
        remove_unneeded_objects,
    )

    hours = OLDER_THAN_HOURS if older_than is None else older_than
    return (remove_unneeded_objects if remove else find_unneeded_objects)(far, keep_runs, hours)


@app.command()
def verify(
    shared: Shared = False,
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Read every byte in the store again and list what is damaged; status 1 if anything is."""
    with clear_errors(debug):
        from schemas.printable import printable
        from stages.store.housekeeping import find_damage
        from stages.store.store import awaits_store, open_remote_at, open_store_at

        sound = "all sound"
        if shared:
            far = open_remote_at(remote)
            from stages.store.remote_housekeeping import find_damaged_objects

            place, damage = far.url, list(find_damaged_objects(far))
        elif awaits_store(store, remote):
            place, damage = str(store.expanduser().resolve()), []
            sound = "there is no store yet. `fairway run` makes one"
        else:
            with open_store_at(store, remote) as opened:
                place, damage = str(opened.root), list(find_damage(opened))
        if json:
            print_json({"store": place, "damage": damage})
        else:
            for problem in damage:
                typer.echo(printable(problem))
            typer.echo(
                f"{len(damage)} damaged; repeat the same `fairway run` to make it again"
                if damage
                else f"{printable(place)}: {sound}"
            )
        if damage:
            raise typer.Exit(1)
