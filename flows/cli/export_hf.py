"""The command fairway export-hf."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.base import NewestRun, app
from flows.cli.options import STORE, OnDemand, Terminal, WeightsOption, weights_of, with_run_options

if TYPE_CHECKING:
    from schemas.huggingface import HuggingFaceFolder


@app.command(cls=OnDemand)
@with_run_options(*STORE, existing=True)
def export_hf(
    run: NewestRun = "last",
    weights: WeightsOption = "packed",
    out: Annotated[
        Path | None, typer.Option(help="folder to write; empty: <store>/huggingface/<run's name>-<weights>")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="load the folder with Transformers and compare logits and ids")
    ] = False,
    *,
    terminal: Terminal,
) -> None:
    """Write a run's model as a folder that Hugging Face Transformers loads."""
    chosen = weights_of(weights)
    from stages.huggingface.export import export_hf as write

    made = write(terminal.opened, run, chosen, out, check)
    terminal.tell(lambda: made.model_dump(mode="json"), partial(_print_folder, made))


def _print_folder(made: "HuggingFaceFolder", console: Console) -> None:
    from rich.text import Text

    from flows.cli.terminal import words
    from schemas.huggingface import INSTALL_COMMAND

    lines = {
        "folder": made.folder,
        "model": f"{made.source}, {made.weights} weights, {made.num_parameters:,} parameters",
        "val_bpb": f"{made.val_bpb:.5f}, non-overlapping windows",
        "bytes": f"{sum(made.files.values()):,} in {len(made.files)} files",
        "read it": f'AutoModelForCausalLM.from_pretrained("{made.folder}", trust_remote_code=True)',
        "needs": INSTALL_COMMAND,
    }
    if made.check is not None:
        lines["check"] = made.check.sentence
    for name, text in lines.items():
        console.print(Text.assemble(words(f"{name:<9}", "bold"), words(text)), soft_wrap=True)
