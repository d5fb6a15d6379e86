"""The pages say what is so: commands parse, settings, files, links and anchors exist, figures come out again.

Only what a page names is looked at; none of the commands is run here.
"""

import ast
import importlib.util
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli.main import app
from presets import PRESETS
from schemas.errors import SpecError
from schemas.introspect import find_setting
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineSpec
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from stages.quantizing.sizing import measure_model
from stages.seeds.statistics import nats_to_bpb, seeds_needed
from stages.store import remote_housekeeping
from stages.store.housekeeping import OLDER_THAN_HOURS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

USAGE_ERROR = typer.BadParameter.__mro__[1]  # of whichever click typer brings along
SECTIONS = tuple(PipelineSpec.model_fields)
STAND_INS = ("4", ".")
WORKED_EXAMPLE = "docs/adding-a-technique.md"
# What the worked examples add; tests of their own apply it.
THERE_ONLY = {"train.model.input_gain", "quantize.method=fixed_clip", "quantize.share"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"^(?:\$ )?(?:\S*/)?(fairway|make|pytest|python|prefect)\b")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands_of(name: str) -> Iterator[list[str]]:
    """Every command on the page as words: in blocks without a language, and in backticks."""
    text = text_of(name)
    blocks = [body for language, body in _FENCE.findall(text) if language in ("", "bash", "sh")]
    indented = re.findall(r"^    (\S.*)$", _FENCE.sub("", text), re.MULTILINE)
    inline = _INLINE.findall(_FENCE.sub("", text))
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *indented, *inline]:
        if _COMMAND.match(line):
            yield shlex.split(line, comments=True)


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse(name: str) -> None:
    for words in commands_of(name):
        _check_command([Path(words[0].removeprefix("$ ")).name, *words[1:]])


def test_a_setting_that_is_none_is_found() -> None:
    assert _is_setting("train.model.xsa_layers")
    assert _is_setting("tokenize.corpus.paths")
    assert not _is_setting("train.model.xsa")
    assert not _is_setting("tokenize.corpus.path")


def test_a_command_that_is_wrong_is_found() -> None:
    """The check itself: names and options that do not exist, and values that cannot be."""
    for wrong in (
        "fairway runn --preset demo",
        "fairway run --prest demo",
        "fairway run --preset dmeo",
        "fairway run --set quantize.methd=x",
        "fairway gc --keep-runs many",
        "fairway ablate last --off xas",
        "make rnu",
        "python -m stages quantise --help",
        "python -m benchmarks.nothing",
        "pytest -m sloww",
        "pytest tests/nowhere",
    ):
        with pytest.raises((AssertionError, USAGE_ERROR, SpecError)):
            _check_command(shlex.split(wrong))


@pytest.mark.parametrize("name", NAMES)
def test_settings_exist(name: str) -> None:
    """Dotted names whose first part is a section of the pipeline's settings, in backticks."""
    for text in _INLINE.findall(_FENCE.sub("", text_of(name))):
        if not (match := re.fullmatch(rf"((?:{'|'.join(SECTIONS)})(?:\.[a-z][a-z0-9_]*)+)(=.*)?", text)):
            continue
        dotted, value = match.groups()
        if dotted in THERE_ONLY:
            assert name == WORKED_EXAMPLE
        elif value and "…" not in value:
            apply_overrides(PipelineSpec(), [text])
        else:
            assert _is_setting(dotted), f"{name}: there is no setting {dotted}"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for target in _LINK.findall(_FENCE.sub("", text_of(name))):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), f"{name}: {target} leads nowhere"
        if anchor:
            assert anchor in _anchors(file), f"{name}: {target}: no such heading"


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    """Paths in backticks that begin with a folder of ours; with * at least one file."""
    folders = "|".join(["flows", "stages", "schemas", "presets", "tests", "benchmarks", "docs"])
    added = set(re.findall(r"^# (tests/\S+\.py)$", text_of(name), re.MULTILINE))
    for text in _INLINE.findall(_FENCE.sub("", text_of(name))):
        if re.fullmatch(rf"(?:{folders})/[\w./*-]*", text) and text not in added:
            assert any(ROOT.glob(text.rstrip("/"))), f"{name}: {text} does not exist"


@pytest.mark.parametrize("name", NAMES)
def test_environment_variables_of_ours_are_read_somewhere(name: str) -> None:
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("flows", "stages")
        for path in (ROOT / folder).rglob("*.py")
    )
    for variable in set(re.findall(r"\bFAIRWAY_[A-Z_]+\b", text_of(name))):
        assert variable in code or variable in text_of("Makefile"), f"{name}: nothing reads {variable}"


def test_the_start_page_is_short() -> None:
    assert len(text_of("README.md").splitlines()) < 130


def test_sentences_of_the_start_page_are_short() -> None:
    """At most 30 words, outside of code and tables."""
    too_long = [words for words in _sentences(text_of("README.md")) if len(words) > 30]
    assert not too_long, [" ".join(words) for words in too_long]


def test_sentences_are_told_apart() -> None:
    page = "One `a.b` is\nhere. Two!\n\n- **Three:** [a link](x.md) follows\n\n| no | row |\n"
    page += "\n```\nno code\n```\n"
    assert [len(words) for words in _sentences(page)] == [4, 1, 4]


def _sentences(page: str) -> Iterator[list[str]]:
    """The words of each sentence of prose. Code in backticks is one word, a link is its text."""
    prose = _LINK.sub(
        lambda link: link[0][link[0].index("[") + 1 : link[0].rindex("](")], _FENCE.sub("\n", page)
    )
    prose = re.sub(r"^(?:\||#).*$", "", _INLINE.sub("code", prose), flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n|^- ", prose, flags=re.MULTILINE):
        for sentence in re.split(r"(?<=[.!?])\W*\s", block):
            if words := re.findall(r"\S*\w\S*", sentence):
                yield words


def test_every_page_is_in_the_index() -> None:
    index = text_of("docs/README.md")
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "README.md" or f"({page.name})" in index, (
            f"docs/README.md does not name {page.name}"
        )


def test_decisions_are_numbered_once() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert len(set(numbers)) == len(numbers)
    for path in (ROOT / "docs" / "decisions").glob("*.md"):
        assert path.read_text(encoding="utf-8").startswith(f"# {int(path.name[:4])}. "), path.name


def test_every_command_is_told_of() -> None:
    everything = "".join(text_of(name) for name in NAMES)
    for command in typer.main.get_command(app).commands:
        assert f"fairway {command}" in everything, f"no page tells of fairway {command}"


def _parameters(preset: str) -> str:
    spec = PRESETS[preset]()
    return f"{measure_model(spec.train.model, spec.train.optimizer, spec.quantize).num_parameters:,}"


FIGURES: dict[str, Callable[..., str]] = {
    "margin of the reference in bpb": lambda: f"{nats_to_bpb(0.005, 1, 1) / 2.4359:.5f}",
    "seeds": lambda effect, samples: str(seeds_needed(float(effect), 1.0, 0.01, samples=int(samples))),
}
"""What `<!-- figure: NAME ARGUMENTS -->` in front of a figure stands for."""

FIGURES_OF: list[tuple[str, str, Callable[[], str]]] = [
    ("README.md", "parameters", lambda: _parameters("demo")),
    ("docs/reliability.md", "--checkpoint-every", lambda: f"{RunOptions().checkpoint_every_seconds:.0f}"),
    ("docs/reliability.md", "--retries N", lambda: str(RunOptions().retries)),
    ("docs/reliability.md", "hours", lambda: f"{OLDER_THAN_HOURS:.0f}"),
    ("docs/several-machines.md", "days", lambda: f"{remote_housekeeping.OLDER_THAN_HOURS / 24:.0f}"),
    ("docs/operating.md", "heartbeat", lambda: _default("up", "heartbeat_seconds")),
    ("docs/operating.md", "--port", lambda: _default("up", "port")),
]
"""Page, the word that a figure belongs to, and the figure: it stands near that word, in whatever sentence."""
NEAR = 30  # characters between them at most


def test_marked_figures_come_out_again() -> None:
    count = 0
    for name in NAMES:
        for label, figure in re.findall(r"<!-- figure: ([^>]+?) -->([\d.,]+)", text_of(name)):
            key = label if label in FIGURES else label.split()[0]
            expected = FIGURES[key](*([] if label in FIGURES else label.split()[1:]))
            assert figure.rstrip(".,") == expected, f"{name}: {label}"
            count += 1
    assert count >= 9


@pytest.mark.parametrize(
    ("name", "about", "compute"), FIGURES_OF, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_figure_stands_near_what_it_is_of(name: str, about: str, compute: Callable[[], str]) -> None:
    text, figure = " ".join(text_of(name).split()), compute()
    near = {
        number.rstrip(".,")
        for match in re.finditer(re.escape(about), text)
        for number in re.findall(r"\d[\d.,]*", text[max(0, match.start() - NEAR) : match.end() + NEAR])
    }
    assert figure in near, f"{name}: near {about} stand {sorted(near)}, not {figure}"


def test_the_presets_count_their_parameters_as_their_docstrings_say() -> None:
    assert _parameters("record") == "25,224,282"
    assert _parameters("record") in (
        ast.get_docstring(ast.parse(text_of("presets/record.py")), clean=True) or ""
    ) + text_of("presets/record.py")


def _check_command(words: list[str]) -> None:
    """Raises for a command that could not be given."""
    words = words[
        : next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "&")), len(words))
    ]
    match words:
        case ["fairway", *arguments]:
            _check_fairway(arguments)
        case ["make", *targets]:
            known = re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE)
            assert all(target in known or "=" in target for target in targets), words
        case ["pytest", *arguments] | ["python", "-m", "pytest", *arguments]:
            _check_pytest(arguments)
        case ["python", "-m", module, *_] if module.split(".")[0] in (
            "flows",
            "stages",
            "benchmarks",
            "tests",
        ):
            _check_module(module, words[3:])
        case ["prefect", *_] | ["python", *_]:
            pass  # another project's


def _check_fairway(arguments: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    if not arguments or arguments == ["--help"] or "…" in " ".join(arguments):
        return
    if arguments in ([option] for item in group.params for option in item.opts):
        return
    command = group.commands.get(arguments[0])
    assert command is not None, f"there is no fairway {arguments[0]}"
    arguments = arguments[1:]
    if "--help" in arguments or not arguments:
        return
    given = _parsed(command, arguments)
    preset = given.get("preset")
    if command.name == "run" and not (preset or given["file"] or given["like"]):
        preset = "demo"
    for word in arguments:
        assert not re.match(r"--[a-z-]+=", word), "write options and values apart"
    if preset is not None:
        assert preset in (*PRESETS, *STAND_INS), f"there is no preset {preset}"
        wanted = [
            setting
            for setting in given.get("set_") or ()
            if not {setting, setting.partition("=")[0]} & THERE_ONLY
        ]
        apply_overrides(PRESETS.get(preset, PRESETS["demo"])(), wanted)
    if command.name == "ablate":
        from flows.results.ablation import plan_variants

        keys = [key for part in given["off"] or () for key in part.split(",") if key != "input-gain"]
        if keys:
            plan_variants(PRESETS["demo"](), tuple(keys))


def _parsed(command: Any, arguments: list[str]) -> dict[str, Any]:
    """What the command would be given.

    A word in capitals stands for something: a number, or a path that exists.
    """
    error: Exception | None = None
    for stand_in in STAND_INS:
        try:
            return command.make_context(
                command.name, [stand_in if word.isupper() else word for word in arguments]
            ).params
        except USAGE_ERROR as found:
            error = found
    raise error or AssertionError("unreachable")


def _check_module(module: str, arguments: list[str]) -> None:
    assert importlib.util.find_spec(module) is not None, f"there is no module {module}"
    if module != "stages":
        return
    assert arguments[0] in STAGES, f"there is no stage {arguments[0]}"
    stage = STAGES[arguments[0]]
    for word in arguments[1:]:
        if word.startswith("--"):
            assert word in ("--spec", "--input", "--store", "--help"), word
    named = {
        word.partition("=")[0]
        for before, word in zip(arguments, arguments[1:], strict=False)
        if before == "--input"
    }
    assert named <= set(stage.inputs), f"{stage.name} takes no input {named - set(stage.inputs)}"


def _check_pytest(arguments: list[str]) -> None:
    markers = re.findall(r'^    "(\w+): ', text_of("pyproject.toml"), re.MULTILINE)
    added = re.findall(r"^# (tests/\S+\.py)$", text_of(WORKED_EXAMPLE), re.MULTILINE)
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "-m":
            assert set(re.findall(r"\w+", word)) - {"not", "and", "or"} <= set(markers), word
        elif word.startswith("tests"):
            assert (ROOT / word).exists() or word in added, word


def _is_setting(dotted: str) -> bool:
    """Also one that only another variant of its section has, as the paths of a corpus of files."""
    try:
        find_setting(PipelineSpec, dotted)
    except KeyError:
        return False
    return True


def _default(command: str, option: str) -> str:
    group: Any = typer.main.get_command(app)
    value = next(item.default for item in group.commands[command].params if item.name == option)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_are_found_wherever_the_tests_are_started() -> None:
    assert "README.md" in NAMES
    assert os.fspath(ROOT / "docs" / "README.md") in map(os.fspath, PAGES)
