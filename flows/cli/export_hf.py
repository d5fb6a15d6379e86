"""The command fairway export-hf."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from schemas.huggingface import HuggingFaceFolder


@app.command()
def export_hf(
    run: Annotated[
        str, typer.Argument(help="id or name of a run, the beginning of either, or 'last' for the newest")
    ] = "last",
    weights: Annotated[
        str, typer.Option(help="packed: the model of the package; merged: before quantization")
    ] = "packed",
    out: Annotated[
        Path | None, typer.Option(help="folder to write; empty: <store>/huggingface/<run's name>-<weights>")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="load the folder with Transformers and compare logits and ids")
    ] = False,
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's model as a folder that Hugging Face Transformers loads."""
    with clear_errors(debug):
        from schemas.errors import SpecError

        if weights not in ("packed", "merged"):
            raise SpecError(f"--weights = {weights}: must be packed or merged")
        from stages.huggingface.export import export_hf as write
        from stages.store.store import open_store_at

        opened = open_store_at(store.expanduser().resolve(), remote)
        made = write(opened, run, weights, out, check)  # type: ignore[arg-type]
        if json:
            print_json(made.model_dump(mode="json"))
        else:
            _print_folder(made)


def _print_folder(made: "HuggingFaceFolder") -> None:
    from rich.text import Text

    from flows.cli.terminal import words
    from schemas.huggingface import INSTALL_COMMAND

    console = make_console()
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
