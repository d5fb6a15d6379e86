"""The command fairway watch."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.base import DEFAULT_STORE, Debug, RemoteStore, StoreFolder, app, clear_errors, make_console

if TYPE_CHECKING:
    from schemas.train_settings import ScheduleSettings
    from stages.training.metrics import Columns

SECONDS_BETWEEN = 1.0
_HEIGHT = 16
_COLOURS = ("blue", "yellow")


@app.command()
def watch(
    run: Annotated[
        str | None,
        typer.Argument(help="an earlier run, to draw its training; without it the training in progress"),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="draw once and end")] = False,
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    debug: Debug = False,
) -> None:
    """Draw loss, held-out score and learning rate of the training in progress, or of an earlier run."""
    with clear_errors(debug):
        from stages.store.store import awaits_store, open_existing_store

        awaits_store(store, remote)  # refuses what is no store
        if run is None:
            _follow(store.expanduser().resolve(), once)
            return
        from flows.results.compared import find_runs
        from schemas.stopped import StoppedRun
        from stages.store.runs import list_reports
        from stages.training.metrics import HELD_OUT_COLUMNS, read_metrics

        opened = open_existing_store(store, remote)
        [found] = find_runs(opened, list_reports(opened.runs_root()), [run])
        ref = found.metrics if isinstance(found, StoppedRun) else found.trained.metrics
        columns = ("step", "loss", "lr_scale", "seconds", *HELD_OUT_COLUMNS)
        metrics = read_metrics(opened.fetch(ref), columns)
        make_console().print(picture(found.name, metrics, found.spec.train.schedule))


def _follow(root: Any, once: bool) -> None:
    """Redraw until the training ends. Raises SpecError where none is in progress."""
    import time

    from rich.live import Live

    from flows.cli.live import is_screen
    from flows.cli.terminal import words
    from schemas.errors import SpecError
    from stages.training.metrics import as_columns, read_lines
    from stages.training.unfinished import unfinished_trainings

    going_on = [training for training in unfinished_trainings(root) if training.goes_on()]
    if not going_on:
        raise SpecError(
            f"store = {root}: no training is in progress. `fairway watch last` draws that of the newest run"
        )
    training, console = going_on[-1], make_console()

    def drawn() -> Any:
        rows = read_lines(training.lines)
        if not rows:
            return words("no step yet")
        return picture(training.folder.name[:12], as_columns(rows), training.schedule())

    if once or not is_screen(console):
        console.print(drawn())
        return
    with Live(drawn(), console=console, auto_refresh=False) as live:
        while training.goes_on():
            time.sleep(SECONDS_BETWEEN)
            if training.lines.exists():  # gone once the result is published: the last picture stays
                live.update(drawn(), refresh=True)


def picture(name: str, metrics: "Columns", schedule: "ScheduleSettings | None") -> Any:
    """The curves as one renderable, with the newest figures above them."""
    import numpy as np
    from rich.console import Group
    from rich.text import Text

    from flows.cli.terminal import words
    from flows.results.chart import chart
    from stages.report.smoothing import running_mean

    step = metrics["step"].astype(float)
    scored = np.flatnonzero(np.isfinite(metrics["val_nats"].astype(float)))
    curves = [
        (step, running_mean(metrics["loss"].astype(float))),
        (step[scored], metrics["val_nats"][scored].astype(float)),
    ]
    total = _last_step(metrics, schedule)
    width = min(make_console().width, 100)
    lines = [
        Text.assemble(*((text, "dim" if number < 0 else _COLOURS[number]) for text, number in line))
        for line in chart(curves, width, _HEIGHT, total)
    ]
    held_out = (
        f"  ■ held-out text {metrics['val_nats'][scored[-1]]:.4f}, val_bpb "
        f"{metrics['val_bpb'][scored[-1]]:.4f} after step {step[scored[-1]]:,.0f}"
        if len(scored)
        else ""
    )
    head = Text.assemble(
        words(name, "bold"),
        words(f"  step {step[-1]:,.0f} of {total:,.0f}, {metrics['seconds'][-1]:.1f} s of training, "),
        words(f"learning-rate scale {metrics['lr_scale'][-1]:.3f}"),
    )
    legend = Text.assemble(
        ("■", _COLOURS[0]),
        words(f" training loss {metrics['loss'][-1]:.4f} nats a token (curve: running mean)"),
        (held_out, _COLOURS[1]),
    )
    return Group(head, legend, *lines)


def _last_step(metrics: "Columns", schedule: "ScheduleSettings | None") -> float:
    """The step at which the training will end, as far as the steps so far tell."""
    steps, seconds = float(metrics["step"][-1]), float(metrics["seconds"][-1])
    if schedule is None:
        return steps
    if schedule.step_seconds is None or seconds <= 0:
        return float(schedule.max_steps)
    return min(float(schedule.max_steps), max(steps, steps * schedule.step_seconds / seconds))
