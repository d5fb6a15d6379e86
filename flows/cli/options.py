"""Command options generated from pydantic models: the fields of `RunOptions` for every command that runs
stages.

The models need pydantic, which takes longer than all of `fairway --help`. So such a command's parameters are
made when it is called, not when it is listed.
"""

import inspect
from collections.abc import Callable
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperCommand
from typer.models import ParameterInfo

from flows.cli.base import (
    DEFAULT_STORE,
    Debug,
    Device,
    Json,
    Nodes,
    Overrides,
    Processes,
    RemoteStore,
    Seed,
    StoreFolder,
    clear_errors,
    make_console,
    option_overrides,
    print_json,
    run_flow,
    say_written,
)

PRESETS_HELP = "{presets}"
"""The help of an option or argument that takes a preset: their names stand there instead."""

STORE = ("store", "remote")
ANY_STAGE = (*STORE, "retries", "stage_timeout_seconds")
HELD_OUT = ("validate_every", "validate_tokens", "stop_if", "stop_behind")
HOSTS = ("launcher", "interface", "group_timeout_seconds")
TRAINING = (*ANY_STAGE, "engine", "checkpoint_every_seconds", *HELD_OUT, *HOSTS, "report_to")
"""Fields of RunOptions that are options of a command that trains. One that runs other stages has ANY_STAGE,
and one that runs none has STORE.
"""

PresetOption = Annotated[str, typer.Option(help=PRESETS_HELP)]
StartPreset = Annotated[str | None, typer.Option(help=PRESETS_HELP, show_default="demo")]
FileArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE]", help="a run file, as `fairway describe PRESET --toml` writes it"),
]
LikeOption = Annotated[
    str | None, typer.Option(metavar="RUN", help="settings of an earlier run: its id or name, or last")
]


def weights_of(text: str) -> Any:
    """The Weights that a `WeightsOption` names. Raises SpecError."""
    from schemas.errors import SpecError
    from schemas.sample import Weights

    if text not in get_args(Weights):
        raise SpecError(f"--weights = {text}: must be {' or '.join(get_args(Weights))}")
    return text


WeightsOption = Annotated[
    str, typer.Option(help="packed: the model of the package; merged: before quantization")
]
TextOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        help="your own text: a file, a folder or a pattern in quotes (may be repeated); a folder of shards; "
        "or owner/dataset on the Hugging Face hub",
    ),
]


_OTHER_NAMES = {
    "run": "RUN",
    "overrides": "--set",
    "clip_grids": "--clip-grid",
    "methods": "--method",
    "schemes": "--scheme",
    "folder": "--output",
    "num_seeds": "--seeds",
    "new_seeds_per_run": "--new",
    "mark_nats": "--mark",
    "margin_nats": "--margin",
}
"""Parameters of flows whose option has another name."""


class Terminal:
    """Run and output options that the user gave to a command."""

    def __init__(self, given: dict[str, Any], existing: bool, json: bool, debug: bool) -> None:
        """`given`: field of RunOptions -> value. `existing`: the command makes no store."""
        self._given, self._existing, self._json, self._debug = given, existing, json, debug

    @cached_property
    def options(self) -> Any:
        """RunOptions with the given values; creates the store if it is missing, unless it must be there.

        Raises SpecError naming the option.
        """
        from pydantic import ValidationError

        from schemas.base import in_our_words
        from schemas.errors import SpecError
        from schemas.runtime import RunOptions
        from stages.store.store import open_existing_store, open_store_at

        opened = open_existing_store if self._existing else open_store_at
        try:
            store = opened(self._given["store"], self._given["remote"])
            return RunOptions(**{**self._given, "store": str(store.root)})
        except ValidationError as error:
            messages = (
                f"{_option_of(str(detail['loc'][0]))} = {detail['input']}: {in_our_words(detail)}"
                for detail in error.errors()
            )
            raise SpecError("; ".join(messages)) from error

    @cached_property
    def opened(self) -> Any:
        """The Store, which has the remote store behind it if there is one."""
        from stages.store.store import open_store

        return open_store(self.options)

    @property
    def store(self) -> Path:
        return Path(self.options.store)

    @property
    def runs_root(self) -> Path:
        """The folder whose runs count: the store, or where the runs of the remote store are mirrored."""
        runs_root: Path = self.opened.runs_root()
        return runs_root

    def run(self, flow: str, *args: Any, **kwargs: Any) -> Any:
        """Run the flow (module:name) with `options` and the other arguments; returns the state in which it
        ended.

        Raises SpecError, before a server is started, for arguments that the flow would refuse.
        """

        def check(made: Any) -> None:
            from flows.inputs.parameters import check_parameters

            check_parameters(made, args, kwargs, self.options, self.opened, _option_of_parameter)

        return run_flow(flow, self.options, self._debug, check, *args, **kwargs)

    def tell(self, value: Callable[[], Any], show: Callable[[Console], None]) -> None:
        """Print the value as JSON with --json, else call the function that shows it."""
        if self._json:
            print_json(value())
        else:
            show(make_console())

    def say_written(self, *files: Path | None) -> None:
        say_written(*files, json=self._json)


def with_run_options(
    *fields: str, existing: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give the command these fields of RunOptions as options, --json and --debug; it gets them as one
    `terminal`.

    `existing`: it works on runs of a store that is there. Its errors become one message. Register the command
    with `cls=OnDemand`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(json: bool, debug: bool, **given: Any) -> None:
            with clear_errors(debug):
                chosen = {field: given.pop(_parameter_of(field)) for field in fields}
                command(**given, terminal=Terminal(chosen, existing, json, debug))

        call.__signature__ = inspect.Signature()  # type: ignore[attr-defined]  # all that a list needs
        call.__annotations__ = {}
        call.whole_signature = partial(_whole_signature, command, fields)  # type: ignore[attr-defined]
        return call

    return decorate


def with_run_choice(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command the options that choose a run; it gets the Plan of that run as `chosen`."""
    own, choice = inspect.signature(command), inspect.signature(_chosen_run)
    names = [name for name in choice.parameters if name != "terminal"]

    @wraps(command)
    def call(terminal: Terminal, **given: Any) -> None:
        chosen = _chosen_run(terminal, **{name: given.pop(name) for name in names})
        command(**given, chosen=chosen, terminal=terminal)

    parameters = [choice.parameters[name] for name in names]
    parameters += [item for name, item in own.parameters.items() if name not in ("chosen", "terminal")]
    last = inspect.Parameter.KEYWORD_ONLY
    call.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[item.replace(kind=last) for item in parameters]
    )
    return call


def _chosen_run(
    terminal: Terminal,
    file: FileArgument = None,
    preset: StartPreset = None,
    like: LikeOption = None,
    text: TextOption = None,
    set_: Overrides = None,
    seed: Seed = None,
    processes: Processes = None,
    device: Device = None,
    nodes: Nodes = None,
) -> Any:
    """Raises SpecError as `start_of_run` and `chosen_plan` do."""
    from flows.cli.chosen import chosen_plan, start_of_run

    start = start_of_run(file or [], preset, like, lambda: terminal.runs_root)
    return chosen_plan(start, option_overrides(set_, seed, processes, device, nodes), text)


class OnDemand(TyperCommand):
    """A command that makes its parameters at first use."""

    def __init__(self, *args: Any, callback: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(*args, callback=callback, **kwargs)
        self._command: Any = callback.__wrapped__  # type: ignore[attr-defined]
        del self.params, self.callback

    def __getattr__(self, name: str) -> Any:
        if name not in ("params", "callback"):
            raise AttributeError(name)
        signature = getattr(self._command, "whole_signature", partial(inspect.signature, self._command))()
        self._command.__signature__ = _with_presets(signature)
        alone = typer.Typer(add_completion=False)
        alone.command()(self._command)
        made = typer.main.get_command(alone)
        self.params, self.callback = made.params, made.callback
        return getattr(self, name)


def _whole_signature(command: Callable[..., None], fields: tuple[str, ...]) -> inspect.Signature:
    """The command's own parameters, then those of RunOptions, --json and --debug."""
    own = inspect.signature(command)
    last = inspect.Parameter.KEYWORD_ONLY
    return own.replace(
        parameters=[
            *(
                parameter.replace(kind=last)
                for name, parameter in own.parameters.items()
                if name != "terminal"
            ),
            *(_option(field) for field in fields),
            inspect.Parameter("json", last, annotation=Json, default=False),
            inspect.Parameter("debug", last, annotation=Debug, default=False),
        ]
    )


def _option(field: str) -> inspect.Parameter:
    """A field of RunOptions as an option. Only the model checks the value, so that there is one message."""
    from schemas.runtime import RunOptions

    info = RunOptions.model_fields[field]
    keyword = partial(inspect.Parameter, _parameter_of(field), inspect.Parameter.KEYWORD_ONLY)
    if field == "store":
        return keyword(annotation=StoreFolder, default=DEFAULT_STORE)
    if field == "remote":
        return keyword(annotation=RemoteStore, default=info.default)
    help_text = (info.description or "").partition("; empty:")[0]
    metavar = "SECONDS" if field.endswith("_seconds") else None
    plain = get_type_hints(RunOptions)[field]
    option = typer.Option(_option_of(field), help=help_text, metavar=metavar)
    return keyword(annotation=Annotated[plain, option], default=info.default)


def _parameter_of(field: str) -> str:
    """`stage_timeout_seconds` -> `timeout`."""
    return field.removeprefix("stage_").removesuffix("_seconds")


def _option_of(field: str) -> str:
    return f"--{_parameter_of(field).replace('_', '-')}"


def _option_of_parameter(name: str) -> str:
    """What a terminal calls a parameter of a flow, or a field of RunOptions."""
    return _OTHER_NAMES.get(name) or _option_of(name)


def _with_presets(signature: inspect.Signature) -> inspect.Signature:
    """The signature with the presets' names in the help of an option that takes a preset."""
    from flows.inputs.starts import preset_names

    *others, last = preset_names()
    for item in signature.parameters.values():
        for info in get_args(item.annotation):
            if isinstance(info, ParameterInfo) and info.help == PRESETS_HELP:
                info.help = f"{', '.join(others)} or {last}"
    return signature
