"""The command fairway sample."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.base import app
from flows.cli.options import STORE, OnDemand, Terminal, WeightsOption, weights_of, with_run_options

if TYPE_CHECKING:
    from schemas.sample import SamplingSettings


@app.command(cls=OnDemand)
@with_run_options(*STORE, existing=True)
def sample(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FOLDER",
            help="id or name of a run, the beginning of either, 'last', or a folder that holds model.fwz",
        ),
    ] = "last",
    prompt: Annotated[str, typer.Option(help="text to continue; empty: the model begins a document")] = "",
    tokens: Annotated[int, typer.Option(help="tokens to write at most")] = 200,
    temperature: Annotated[
        float, typer.Option(help="logits are divided by it; 0: the likeliest token each time")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(help="only so many of the likeliest tokens count; 0: all")] = 50,
    seed: Annotated[
        int, typer.Option(help="random numbers of the first text; the next have the seeds after it")
    ] = 1,
    count: Annotated[int, typer.Option(help="texts to write")] = 1,
    weights: WeightsOption = "packed",
    tokenizer: Annotated[
        Path | None, typer.Option(help="SentencePiece model of a FOLDER; a run has its own")
    ] = None,
    *,
    terminal: Terminal,
) -> None:
    """Let a run's model, or the model of a package, continue a text. Nothing of a folder is run."""
    from flows.cli.terminal import print_sample

    settings = _settings(
        tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, count=count
    )  # refuses bad input before torch is imported
    chosen = weights_of(weights)
    from stages.generate import is_folder, load
    from stages.generate import sample as write

    store, remote = (None, None) if is_folder(source) else (terminal.store, terminal.options.remote)
    generator = load(source, store=store, remote=remote, weights=chosen, tokenizer=tokenizer)
    made = write(generator, chosen, prompt, settings)
    terminal.tell(lambda: made.model_dump(mode="json"), partial(print_sample, sample=made))


def _settings(**given: float) -> "SamplingSettings":
    """Raises SpecError that names the option."""
    from pydantic import ValidationError

    from schemas.base import in_our_words
    from schemas.errors import SpecError
    from schemas.sample import SamplingSettings

    try:
        return SamplingSettings.model_validate(given)
    except ValidationError as error:
        said = (
            f"--{str(item['loc'][0]).replace('_', '-')} = {item['input']}: {in_our_words(item)}"
            for item in error.errors()
        )
        raise SpecError("; ".join(said)) from error
