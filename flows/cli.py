"""The command line: fairway run | requantize | validate-seeds | describe | show | runs | up. Heavy imports stand inside the commands, so that --help answers at once."""

import os
import sys
from collections.abc import Callable, Iterator
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
Retries = Annotated[int, typer.Option(help="further tries after a transient error")]
Timeout = Annotated[float | None, typer.Option(help="end a stage's process after so many seconds")]
Debug = Annotated[bool, typer.Option("--debug", help="show stack traces and Prefect's own log")]

DEFAULT_STORE = Path(".fairway")


@app.command()
def run(
    preset: Annotated[str, typer.Option(help="smoke, demo, record or reference")] = "demo",
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    store: StoreFolder = DEFAULT_STORE,
    retries: Retries = 3,
    timeout: Timeout = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole chain. What the store already holds is not made again."""
    with _clear_errors(debug):
        from flows.runs import load_report
        from flows.specs import resolve
        from flows.terminal import print_report, report_json

        overrides = _overrides(set_, seed, processes, device)
        resolve(preset, overrides)  # refuses bad input before anything is started
        options = _options(store, retries, timeout)

        def call() -> Any:
            from flows.pipeline import pipeline

            return pipeline(preset, overrides=overrides, options=options, return_state=True)

        state = _run_flow(call, options, debug)
        report = load_report(Path(options.store), str(state.state_details.flow_run_id))
        if report is not None and json:
            _print_json(report_json(report, Path(options.store)))
        elif report is not None:
            print_report(_console(), report, Path(options.store))
        state.result(raise_on_failure=True)


@app.command()
def requantize(
    run: Annotated[str, typer.Argument(help="id or name of a run, the beginning of either, or 'last' for the last successful one")] = "last",
    bits: Annotated[list[str] | None, typer.Option(help="format of the matrices, int2 to int8; several are compared")] = None,
    clip_grid: Annotated[list[str] | None, typer.Option(help="clip ratios with commas, as 1.0,0.95,0.9; several are compared")] = None,
    method: Annotated[list[str] | None, typer.Option(help="gptq_lite or round_to_nearest; both are compared")] = None,
    set_: Overrides = None,
    at_once: Annotated[int, typer.Option(min=1, max=8, help="variants that run side by side")] = 2,
    store: StoreFolder = DEFAULT_STORE,
    retries: Retries = 3,
    timeout: Timeout = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Quantize and score the merged model of an earlier run again. Training is not run."""
    with _clear_errors(debug):
        from flows.runs import find_report, last_successful
        from flows.terminal import print_comparison, report_json

        options = _options(store, retries, timeout)
        root = Path(options.store)
        earlier = last_successful(root) if run == "last" else find_report(root, run)

        def call() -> Any:
            from flows.requantize import requantize as flow

            asked = {"bits": bits, "clip_grids": clip_grid, "methods": method, "overrides": set_}
            given = {name: value for name, value in asked.items() if value}
            return flow(earlier.run_id, at_once=at_once, options=options, return_state=True, **given)

        state = _run_flow(call, options, debug)
        rows, reports = state.result(raise_on_failure=True)
        if json:
            _print_json([report_json(report, root) for report in reports])
        else:
            print_comparison(_console(), earlier.name, rows)


@app.command()
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the Prefect server on the loopback interface")] = 4200,
    heartbeat_seconds: Annotated[int, typer.Option(min=30, help="seconds between a run's heartbeats; after three it counts as crashed")] = 180,
    store: StoreFolder = DEFAULT_STORE,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Start the Prefect server, deployments and a worker, and say where the browser finds them. Ctrl-C ends all of it."""
    with _clear_errors(debug):
        from rich.console import Console

        from flows.terminal import log_to
        from flows.up import everything_up, one_interrupt, wait_for_the_end
        from stages.store import Store

        root = Store(store).root
        messages: Console = _console(stderr=True)
        one_interrupt()
        try:
            with log_to(messages), everything_up(root, port, heartbeat_seconds) as url:
                address = url.removesuffix("/api")
                if json:
                    _print_json({"ui": address, "api": url, "store": str(root)})
                    sys.stdout.flush()
                else:
                    typer.echo(f"ready: {address}   (store {root}; Ctrl-C ends server, worker and runs)")
                    typer.echo(f"for runs from a terminal: export PREFECT_API_URL={url}")
                wait_for_the_end()
        except KeyboardInterrupt:
            pass
        typer.echo("stopped", err=True)


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


def main() -> None:
    """Entry point of `fairway`."""
    app()


def _options(store: Path, retries: int, timeout: float | None) -> Any:
    from pydantic import ValidationError

    from schemas.errors import SpecError
    from schemas.runtime import RunOptions
    from stages.store import Store

    try:
        return RunOptions(store=str(Store(store).root), retries=retries, stage_timeout_seconds=timeout)
    except ValidationError as error:
        raise SpecError("; ".join(f"--{item['loc'][0]} = {item['input']}: {item['msg']}" for item in error.errors())) from error


def _run_flow(call: Callable[[], Any], options: Any, debug: bool) -> Any:
    """The state in which the flow ended, with its lines and progress shown meanwhile."""
    from flows.environment import prefect_api
    from flows.progress import stage_progress
    from flows.terminal import live_output

    if not debug:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # our own lines and messages say it all
    with live_output(_console(stderr=True)) as show_progress, prefect_api(Path(options.store)):
        token = stage_progress.set(show_progress)
        try:
            return call()
        finally:
            stage_progress.reset(token)


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
