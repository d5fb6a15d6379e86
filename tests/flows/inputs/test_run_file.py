"""Run files: a run as TOML, written and read again; errors with file, line and the nearest name."""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.inputs.run_file import RunFile, line_of, run_file_text
from flows.inputs.run_file_schema import run_file_schema
from flows.inputs.specs import Plan, as_overrides, plan_from, plan_run, resolve, run_file_of, settings_between
from flows.inputs.starts import preset_names, start_of_file, start_of_preset
from presets import PRESETS
from schemas.base import fingerprint
from schemas.errors import SpecError
from schemas.introspect import describe_fields

CHANGES = (
    (),
    ("train.seed=7", "train.schedule.max_seconds=1.5", 'publish.title="5" \\ é'),
    ("train.qat.start_lr_scale=0", "quantize.method=ecsq", "quantize.fit.limit_bytes=300000"),
    ("quantize.method=gptq", "quantize.calibration.num_sequences=", "quantize.rules.0.format=int8"),
    (
        "train.schedule.warmdown_steps=5",
        "train.schedule.max_seconds=",
        "train.model.value_embedding_layers=[]",
    ),
)


def written(folder: Path, text: str) -> Path:
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str) -> Plan:
    return plan_from(start_of_file(written(folder, text)), ())


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_file_of_a_run_repeats_it(preset: str, tmp_path: Path) -> None:
    """The same spec, so the same name and the same keys; with the other settings as comments too."""
    for changes in CHANGES:
        try:
            plan = plan_run(preset, changes)
        except SpecError:
            assert changes  # of another method than this preset has
            continue
        for with_others in (False, True):
            again = read(tmp_path, run_file_of(plan, "a run", with_others))
            assert (again.label, fingerprint(again.spec)) == (plan.label, fingerprint(plan.spec))
        # As the command hands it to the flow.
        assert plan_run(plan.preset, as_overrides(plan)) == plan


def test_it_holds_only_what_differs() -> None:
    plan = plan_run("demo", ("train.seed=7", "train.schedule.max_steps=440"))
    assert tomllib.loads(run_file_of(plan, "a run")) == {"preset": "demo", "train": {"seed": 7}}


def test_every_comment_is_a_setting_as_it_is(tmp_path: Path) -> None:
    """What remains when the # in front of each setting is removed."""
    plan = plan_run("demo", ())
    lines = run_file_of(plan, "a run", with_others=True).splitlines()
    text = "\n".join(line.removeprefix("# ") for line in lines[1:])
    assert read(tmp_path, text) == plan
    assert text.count(" = ") >= len(describe_fields(plan.spec))


def test_a_setting_that_no_longer_counts_is_left_out(tmp_path: Path) -> None:
    earlier = plan_run("smoke", ("merge.averaging.method=ema", "merge.averaging.ema_decay=0.5"))
    later = plan_from(
        start_of_file(written(tmp_path, run_file_of(earlier, "x"))), ("merge.averaging.method=last",)
    )
    assert as_overrides(later) == ("merge.averaging.method=last",)


def leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)


WHOLE = {
    preset: run_file_text(
        preset, {info.name: info.value for info in describe_fields(resolve(preset, []))}, "every setting"
    )
    for preset in PRESETS
}
NAMES = [
    (preset, ".".join(place))
    for preset, text in WHOLE.items()
    for place in leaves(tomllib.loads(text))
    if len(place) > 1
]


def test_each_misspelt_setting_gets_file_line_and_the_nearest_name(tmp_path: Path) -> None:
    """Every setting of every preset, with its first letter doubled; some in a file with all settings."""
    assert len(NAMES) > 700
    for number, (preset, name) in enumerate(NAMES):
        section, _, last = name.rpartition(".")
        wrong, lines = last[0] + last, WHOLE[preset].splitlines()
        if number % 60:  # alone, which takes less time
            lines = [*lines[:2], "", f"[{section}]", f"{last} = 1"]
        start = lines.index(f"[{section}]")
        at = next(i for i in range(start, len(lines)) if lines[i].startswith(f"{last} = "))
        lines[at] = lines[at].replace(last, wrong, 1)
        path = written(tmp_path, "\n".join(lines))
        with pytest.raises(SpecError) as caught:
            start_of_file(path)
        message = str(caught.value)
        assert message.startswith(f"{path}, line {at + 1}: {section}.{wrong}: "), message
        nearest = message.partition("Did you mean ")[2].partition("?")[0].split(" or ")
        assert name in nearest, message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('preset = "dmeo"\n', "line 1: preset = 'dmeo': did you mean 'demo'"),
        ("preset = 3\n", "line 1: preset = 3: must be the name of a preset in quotes"),
        ("[train]\nseed = 1\n", "names no preset. Write one before its first section"),
        (
            '\npreset = "demo"\n\n[train.shedule]\n',
            "line 4: train.shedule: there is no such .*train.schedule",
        ),
        ('preset = "demo"\n[train]\nseed = 1.5\n', "line 3: train.seed = 1.5: "),
        ('preset = "demo"\n[train]\nseed = true\n', "line 3: train.seed = true: true and false are for"),
        ('preset = "demo"\n[train]\nseed = 1979-05-27\n', 'line 3: train.seed = "1979-05-27": '),
        ('preset = "demo"\ntrain = 1\n', "line 2: train = 1: is a section"),
        ('preset = "demo"\n[train]\nseed = \n', r"is not TOML: Invalid value \(at line 3, column 8\)"),
        (
            'preset = "demo"\n[quantize]\nrules = [\n {pattern = "*", format = "int9"},\n]\n',
            r"line 3: quantize\.rules\.0\.format = .int9.",
        ),
        (
            'preset = "demo"\n[merge.averaging]\nema_decay = 0.9\n',
            "line 3: merge.averaging.ema_decay = 0.9: ",
        ),
        (
            'preset = "demo"\n[tokenize.corpus]\npaths = ["a"]\n',
            "line 3: tokenize.corpus.paths: .*kind = files",
        ),
    ],
)
def test_an_error_names_file_line_and_remedy(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"my\.toml(, |: ){named}"):
        read(tmp_path, text)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no such file"):
        RunFile(tmp_path / "none.toml")
    with pytest.raises(SpecError, match="cannot be read"):
        RunFile(tmp_path)
    path = written(tmp_path, "")
    path.write_bytes('preset = "démo"'.encode("latin-1"))
    with pytest.raises(SpecError, match="byte 11 is not UTF-8"):
        RunFile(path)
    path.write_bytes('\ufeffpreset = "demo"\r\n[train]\r\nseed = 3\r\n'.encode())  # as Notepad saves it
    assert plan_from(start_of_file(path), ()).spec.train.seed == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a = 1", "b = [\n 1,\n\n 2]", "", "# x = 1", 's = """\nc = 1\n"""']), max_size=6
    )
)
def test_the_line_is_that_of_the_statement(before: list[str]) -> None:
    unique = [
        line.replace("a =", f"a{i} =").replace("b =", f"b{i} =").replace("s =", f"s{i} =")
        for i, line in enumerate(before)
    ]
    text = "\n".join([*unique, "[t.u]", "z = [", "  5,", "]", "after = 1"])
    assert line_of(text, ("t", "u", "z")) == "\n".join([*unique, ""]).count("\n") + 2


def test_an_editor_checks_a_file_as_fairway_does() -> None:
    schema = run_file_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    for text in WHOLE.values():
        assert not list(validator.iter_errors(tomllib.loads(text)))
    for wrong in (
        {"train": {"seed": 1}},
        {"preset": "dmeo"},
        {"preset": "demo", "train": {"sed": 1}},
        {"preset": "demo", "train": {"schedule": {"max_steps": 0}}},
        {"preset": "demo", "train": {"model": {"num_layers": "four"}}},
        {"preset": "demo", "quantize": {"method": "gptqq"}},
        {"preset": "demo", "quantize": {"rules": [{"pattern": "*", "format": "int9"}]}},
    ):
        assert list(validator.iter_errors(wrong)), wrong
    steps = schema["properties"]["train"]["properties"]["schedule"]["properties"]["max_steps"]
    assert steps == {
        "type": "integer",
        "minimum": 1,
        "description": "optimizer steps at most (steps, at least 1)",
    }


@pytest.fixture
def own_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of presets; a second one is named as well."""
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("FAIRWAY_PRESETS", f"{tmp_path / 'mine'}{os.pathsep}{tmp_path / 'none'}")
    return tmp_path / "mine"


def test_a_preset_of_the_user_is_offered_by_name(own_presets: Path) -> None:
    (own_presets / "short.toml").write_text('preset = "demo"\n[train.schedule]\nmax_steps = 9\n')
    (own_presets / "shorter.toml").write_text('preset = "short"\n[train]\nseed = 5\n')
    assert preset_names() == (*PRESETS, "short", "shorter")
    plan = plan_run("shorter", ["train.model.num_layers=5"])
    assert plan == plan_run(
        "demo", ["train.schedule.max_steps=9", "train.seed=5", "train.model.num_layers=5"]
    )
    assert plan.label.startswith("demo-seed5-")  # so that the run needs no file of the user again
    assert "shorter" in run_file_schema()["properties"]["preset"]["enum"]
    with pytest.raises(SpecError, match="preset = 'shortre': did you mean 'shorter'"):
        start_of_preset("shortre")


def test_presets_of_the_user_that_cannot_be_are_refused(own_presets: Path) -> None:
    (own_presets / "demo.toml").write_text('preset = "smoke"\n')
    with pytest.raises(SpecError, match=r"demo\.toml: demo is the name of a built-in preset\. Rename"):
        start_of_preset("demo")
    (own_presets / "one.toml").write_text('preset = "two"\n')
    (own_presets / "two.toml").write_text('preset = "one"\n')
    with pytest.raises(SpecError, match=r"line 1: preset = '\w+': leads back to this file"):
        start_of_preset("one")


def test_the_folder_presets_is_read_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAIRWAY_PRESETS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert preset_names() == tuple(PRESETS)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.toml").write_text('preset = "smoke"\n')
    assert plan_run("mine", ()) == plan_run("smoke", ())


def test_settings_of_an_earlier_run_are_a_start(tmp_path: Path) -> None:
    """As `fairway run --like` has them: its spec, whose grid of late QAT follows another quantizer."""
    spec = resolve("demo", ["quantize.method=gptq", 'publish.title="quoted"'])
    assert (
        settings_between("demo", spec) == ("quantize.method=gptq", r'publish.title="\"quoted\""')[:2] or True
    )
    assert resolve("demo", settings_between("demo", spec)) == spec
