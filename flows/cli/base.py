"""Base of all commands: the Typer app, shared options, running a flow, and errors as one message."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="fairway",
    help="Text in; a scored, quantized and size-checked language model out.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        from stages.store.source import fairway_version

        typer.echo(f"fairway {fairway_version()}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="show the version")
    ] = False,
) -> None:
    """Text in; a scored, quantized and size-checked language model out."""


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="another value of a setting; may be repeated"),
]
Seed = Annotated[int | None, typer.Option(help="short for --set train.seed=…")]
Processes = Annotated[
    int | None, typer.Option(help="processes that train, merge and evaluate: sets ….compute.num_processes")
]
Nodes = Annotated[int | None, typer.Option(help="machines that train together: sets train.compute.num_nodes")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda, for the same three: sets ….compute.device")]
StoreFolder = Annotated[
    Path, typer.Option("--store", envvar="FAIRWAY_STORE", help="folder of the content-addressed store")
]
RemoteStore = Annotated[
    str | None,
    typer.Option(
        "--remote",
        envvar="FAIRWAY_REMOTE",
        help="store that machines share, s3://…, gs://…, az://… or file:///…",
    ),
]
Shared = Annotated[
    bool, typer.Option("--shared", help="look after the remote store instead, from one machine at a time")
]
Json = Annotated[
    bool, typer.Option("--json", help="plain JSON on standard output; everything else goes to standard error")
]
Debug = Annotated[bool, typer.Option("--debug", help="show stack traces and Prefect's own log")]

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="id or name of a run, the beginning of either, or 'last'")
]
NewestRun = Annotated[
    str, typer.Argument(help="id or name of a run, the beginning of either, or 'last' for the newest")
]

DEFAULT_STORE = Path(".fairway")


def run_flow(
    flow: str, options: Any, debug: bool, check: Callable[[Any], None], *args: Any, **kwargs: Any
) -> Any:
    """Run the flow (module:name) with `options` and the other arguments, and show its lines and progress.

    Returns the state in which it ended. `check` gets the flow before a server is started.
    """
    from flows.cli.live import live_output, waiting_on
    from flows.server.environment import prefect_api, prefect_settings
    from flows.tasks.progress import stage_progress
    from stages.processes.own_process import hangup_interrupts

    if not debug:
        os.environ.setdefault(
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL"
        )  # our own lines and messages say it all
    console = make_console(stderr=True)
    store = Path(options.store)
    with hangup_interrupts(), live_output(console) as show_progress:
        prefect_settings(store)
        # Not before: Prefect reads its settings when it is imported.
        made = resolve_name(flow)
        check(made)
        with prefect_api(store, waiting_on(console)):
            token = stage_progress.set(show_progress)
            try:
                return made(*args, options=options, return_state=True, **kwargs)
            finally:
                stage_progress.reset(token)


def option_overrides(
    given: list[str] | None,
    seed: int | None,
    processes: int | None,
    device: str | None,
    nodes: int | None = None,
) -> list[str]:
    short = [f"train.seed={seed}"] if seed is not None else []
    short += [f"train.compute.num_nodes={nodes}"] if nodes is not None else []
    for name, value in (("num_processes", processes), ("device", device)):
        if value is not None:
            short += [f"{section}.compute.{name}={value}" for section in ("train", "merge", "evaluate")]
    return [*short, *(given or [])]


@contextmanager
def clear_errors(debug: bool) -> Iterator[None]:
    """Turn errors into one message: status 2 for bad input, 1 for a failed run, 130 for Ctrl-C.

    `debug` lets the stack trace through.
    """
    from schemas.errors import FairwayError, SpecError
    from schemas.printable import printable

    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: finished stages are stored; the same command resumes", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except FairwayError as error:
        if debug:
            raise
        typer.echo(f"fairway: {printable(str(error))}", err=True)
        raise typer.Exit(2 if isinstance(error, SpecError) else 1) from None
    except Exception as error:
        if debug:
            raise
        typer.echo(
            f"fairway: {type(error).__name__}: {printable(str(error))}\n(--debug shows where)", err=True
        )
        raise typer.Exit(1) from None


def make_console(stderr: bool = False) -> Any:
    from flows.cli.live import is_screen
    from flows.cli.narrow import FittingConsole

    # Nothing in a text is a command to the console: a value or a path may hold `[/b]` or `:bug:`.
    console = FittingConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not is_screen(console):
        console.width = 200  # nothing wraps at 80 columns, so that lines stay whole in logs and pipes
    return console


def say_written(*files: Path | None, json: bool) -> None:
    """A line for each file that a command wrote; beside JSON, on standard error."""
    from schemas.printable import one_line

    for file in files:
        if file is not None:
            typer.echo(f"written: {one_line(str(file))}", err=json)


def print_json(value: Any) -> None:
    import json

    from schemas.printable import printable_json

    # Where the output cannot hold every character, escapes keep the values exact.
    in_ascii = "utf" not in (sys.stdout.encoding or "").lower()
    sys.stdout.write(
        printable_json(json.dumps(value, indent=1, ensure_ascii=in_ascii, allow_nan=False)) + "\n"
    )
