"""The command line: fairway run | describe | show | runs | gc | verify.

Heavy imports stand inside the commands, so that --help answers at once.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="fairway",
    help="Text in; a scored, quantized and size-checked language model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="another value of a setting; may be repeated")]
Seed = Annotated[int | None, typer.Option(help="short for --set train.seed=…")]
Processes = Annotated[int | None, typer.Option(help="processes that train, merge and evaluate: sets ….compute.num_processes")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda, for the same three: sets ….compute.device")]
StoreFolder = Annotated[Path, typer.Option("--store", envvar="FAIRWAY_STORE", help="folder of the content-addressed store")]
Json = Annotated[bool, typer.Option("--json", help="plain JSON on standard output; everything else goes to standard error")]
Debug = Annotated[bool, typer.Option("--debug", help="show stack traces and Prefect's own log")]

DEFAULT_STORE = Path(".fairway")
_OPTION_OF: dict[Any, str] = {"stage_timeout_seconds": "timeout", "checkpoint_every_seconds": "checkpoint-every"}


@app.command()
def run(
    preset: Annotated[str, typer.Option(help="smoke, demo, record or reference")] = "demo",
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    store: StoreFolder = DEFAULT_STORE,
    retries: Annotated[int, typer.Option(help="further tries after a transient error")] = 3,
    timeout: Annotated[float | None, typer.Option(help="end a stage's process after so many seconds")] = None,
    checkpoint_every: Annotated[float, typer.Option(help="seconds of training that a kill may cost")] = 30.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole chain. What the store already holds is not made again."""
    with _clear_errors(debug):
        from pydantic import ValidationError

        from flows.specs import resolve
        from schemas.errors import SpecError
        from schemas.runtime import RunOptions
        from stages.store import Store

        overrides = _overrides(set_, seed, processes, device)
        resolve(preset, overrides)  # refuses bad input before anything is started
        root = Store(store).root
        try:
            options = RunOptions(store=str(root), retries=retries, stage_timeout_seconds=timeout, checkpoint_every_seconds=checkpoint_every)
        except ValidationError as error:
            raise SpecError(
                "; ".join(f"--{_OPTION_OF.get(item['loc'][0], item['loc'][0])} = {item['input']}: {item['msg']}" for item in error.errors())
            ) from error
        _run(preset, overrides, options, json, debug)


@app.command()
def describe(
    preset: Annotated[str, typer.Argument(help="smoke, demo, record or reference")],
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Every setting of a preset with its unit, parameters by part, tokens, steps and estimated bytes."""
    with _clear_errors(debug):
        from flows.describe import describe_spec, print_description
        from flows.specs import resolve, run_label

        spec = resolve(preset, _overrides(set_, seed, processes, device))
        told = describe_spec(preset, run_label(preset, spec), spec)
        if json:
            _print_json(told)
        else:
            print_description(_console(), told)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="id or name of a run, the beginning of either, or 'last'")] = "last",
    store: StoreFolder = DEFAULT_STORE,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The figures of a finished run."""
    with _clear_errors(debug):
        from flows.runs import find_report
        from flows.terminal import print_report, report_json

        root = store.expanduser().resolve()
        report = find_report(root, run)
        if json:
            _print_json(report_json(report, root))
        else:
            print_report(_console(), report, root)


@app.command()
def runs(store: StoreFolder = DEFAULT_STORE, json: Json = False, debug: Debug = False) -> None:
    """The finished runs in the store, the newest last."""
    with _clear_errors(debug):
        from flows.runs import list_reports
        from flows.terminal import print_runs, report_json

        root = store.expanduser().resolve()
        reports = list_reports(root)
        if json:
            _print_json([{key: value for key, value in report_json(report, root).items() if key != "report"} for report in reports])
        else:
            print_runs(_console(), reports)


@app.command()
def gc(
    remove: Annotated[bool, typer.Option("--remove", help="take it away; without this it is only listed")] = False,
    keep_runs: Annotated[int | None, typer.Option(min=0, help="also give up all but so many runs and those in a ledger")] = None,
    older_than: Annotated[float, typer.Option(min=0, help="hours that something must have lain untouched")] = 24.0,
    store: StoreFolder = DEFAULT_STORE,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List what no run needs, or take it away. Does nothing while a run is in progress."""
    with _clear_errors(debug):
        from flows.housekeeping import find_unneeded, remove_unneeded
        from flows.terminal import print_unneeded
        from stages.store import Store

        opened = Store(store)
        found = (remove_unneeded if remove else find_unneeded)(opened, keep_runs, older_than)
        if json:
            items = [{"path": str(item.path), "num_bytes": item.num_bytes, "reason": item.reason} for item in found]
            _print_json({"removed": remove, "num_bytes": sum(item.num_bytes for item in found), "items": items})
        else:
            print_unneeded(_console(), found, opened.root, remove)


@app.command()
def verify(store: StoreFolder = DEFAULT_STORE, json: Json = False, debug: Debug = False) -> None:
    """Read every byte in the store again and list what is damaged; status 1 if anything is."""
    with _clear_errors(debug):
        from flows.housekeeping import find_damage
        from stages.store import Store

        opened = Store(store)
        damage = list(find_damage(opened))
        if json:
            _print_json({"store": str(opened.root), "damage": damage})
        else:
            for problem in damage:
                typer.echo(problem)
            typer.echo(f"{len(damage)} damaged; the same `fairway run` makes it again" if damage else f"{opened.root}: all sound")
        if damage:
            raise typer.Exit(1)


def main() -> None:
    """Entry point of `fairway`."""
    app()


def _run(preset: str, overrides: list[str], options: Any, json: bool, debug: bool) -> None:
    from flows.environment import prefect_api
    from flows.runs import load_report
    from flows.terminal import live_output, print_report, report_json

    root = Path(options.store)
    messages = _console(stderr=True)
    if not debug:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # our own lines and messages say it all
    with live_output(messages) as show_progress, prefect_api(root):
        from flows.pipeline import pipeline
        from flows.progress import stage_progress

        token = stage_progress.set(show_progress)
        try:
            state = pipeline(preset, overrides, options, return_state=True)
        finally:
            stage_progress.reset(token)
    report = load_report(root, str(state.state_details.flow_run_id))
    if report is not None and json:
        _print_json(report_json(report, root))
    elif report is not None:
        print_report(_console(), report, root)
    state.result(raise_on_failure=True)


def _overrides(given: list[str] | None, seed: int | None, processes: int | None, device: str | None) -> list[str]:
    short = [f"train.seed={seed}"] if seed is not None else []
    for name, value in (("num_processes", processes), ("device", device)):
        if value is not None:
            short += [f"{section}.compute.{name}={value}" for section in ("train", "merge", "evaluate")]
    return [*short, *(given or [])]


@contextmanager
def _clear_errors(debug: bool) -> Iterator[None]:
    """Errors as one message: status 2 for bad input, 1 for a failed run, 130 for Ctrl-C. `debug` lets the stack trace through."""
    from schemas.errors import FairwayError, SpecError

    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: finished stages are kept, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except FairwayError as error:
        if debug:
            raise
        typer.echo(f"fairway: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, SpecError) else 1) from None
    except Exception as error:
        if debug:
            raise
        typer.echo(f"fairway: {type(error).__name__}: {error}\n(--debug shows where)", err=True)
        raise typer.Exit(1) from None


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    # Without a terminal nothing wraps at 80 columns, so that lines stay whole in logs and pipes.
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=200)


def _print_json(value: Any) -> None:
    import json

    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
