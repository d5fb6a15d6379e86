"""Commands for submission folders: fairway export | check | rescore."""

from pathlib import Path
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


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(
            help="id or name of a run, the beginning of either, or 'last' for the last successful one"
        ),
    ] = "last",
    author: Annotated[str, typer.Option(help="your name")] = ...,  # type: ignore[assignment]
    github_id: Annotated[str, typer.Option(help="your account on GitHub")] = ...,  # type: ignore[assignment]
    name: Annotated[str, typer.Option(help="title of the submission")] = ...,  # type: ignore[assignment]
    blurb: Annotated[str, typer.Option(help="one or two sentences; empty: made from the settings")] = "",
    out: Annotated[
        Path | None, typer.Option(help="folder to write; empty: <store>/submissions/<run's name>")
    ] = None,
    only_this_seed: Annotated[
        bool, typer.Option("--only-this-seed", help="leave out other seeds of the same settings and code")
    ] = False,
    store: StoreFolder = DEFAULT_STORE,
    remote: RemoteStore = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a finished run as a submission folder of the official form, and check it; status 1 if a rule is
    broken.
    """
    with clear_errors(debug):
        from flows.cli.live import log_to
        from flows.cli.terminal import print_rules
        from stages.store.store import open_existing_store
        from stages.submission.inputs import about_of, write_submission

        about = about_of(author, github_id, name, blurb)
        with log_to(make_console(stderr=True)):
            made = write_submission(open_existing_store(store, remote), run, about, out, only_this_seed)
        if json:
            info = made.info.model_dump(mode="json")
            print_json(
                {
                    "folder": str(made.folder),
                    "submission": info,
                    "rules": [rule.model_dump() for rule in made.rules],
                }
            )
        else:
            print_rules(make_console(), str(made.folder), made.rules)
        if any(rule.verdict == "fail" for rule in made.rules):
            raise typer.Exit(1)


@app.command()
def check(
    folder: Annotated[
        Path,
        typer.Argument(
            help="submission folder: README.md, submission.json, train_gpt.py, logs, perhaps the model"
        ),
    ],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply the published rules to any folder without running its code; status 1 if one is broken."""
    with clear_errors(debug):
        from flows.cli.terminal import print_rules
        from schemas.printable import one_line
        from stages.submission.rules import check_folder

        rules, name = check_folder(folder), one_line(str(folder))
        if json:
            print_json({"folder": name, "rules": [rule.model_dump() for rule in rules]})
        else:
            print_rules(make_console(), name, rules)
        if any(rule.verdict == "fail" for rule in rules):
            raise typer.Exit(1)


@app.command()
def rescore(
    folder: Annotated[Path, typer.Argument(help="folder that holds model.fwz")],
    shards: Annotated[str, typer.Option(help=("glob of the validation shards"))] = ...,  # type: ignore[assignment]
    tokenizer: Annotated[
        Path | None, typer.Option(help="SentencePiece model; empty: the only *.model beside the shards")
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(help="tokens in a window; empty: as submission.json says, or 2048")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="targets that each sliding window adds; 0 leaves them out")
    ] = None,
    attention_window: Annotated[
        int | None,
        typer.Option(help="instead of sliding windows: tokens that each token attends to, in one pass"),
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="tokens in one forward pass")] = None,
    processes: Annotated[int, typer.Option(min=1, max=8, help="processes that score")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    precision: Annotated[
        str, typer.Option(help="bfloat16, float32, or auto: whichever this machine has instructions for")
    ] = "auto",
    run_its_script: Annotated[
        bool,
        typer.Option(
            "--run-its-script",
            help="score with the folder's own train_gpt.py: this runs untrusted code with your rights",
        ),
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="end the scoring after this many seconds")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a folder's model again, in fresh processes, and compare with the claimed score."""
    with clear_errors(debug):
        from flows.cli.live import live_output
        from flows.cli.terminal import print_rescored
        from schemas.printable import one_line
        from stages.submission.inputs import compute_of, shards_of, tokenizer_beside
        from stages.submission.rescore import rescore as score_again
        from stages.submission.rescore import scoring_of

        paths = shards_of(shards)
        model = tokenizer or tokenizer_beside(paths)
        scoring = scoring_of(folder, sequence_length, stride, attention_window, batch_tokens)
        compute = compute_of(device, processes, precision)
        with live_output(make_console(stderr=True)) as show:
            made = score_again(
                folder,
                paths,
                model,
                scoring,
                compute,
                run_its_script,
                lambda done, total, unit: show("rescore", done, total, unit),
                timeout,
            )
        if json:
            print_json(made.model_dump(mode="json"))
        else:
            print_rescored(make_console(), one_line(str(folder)), made)
