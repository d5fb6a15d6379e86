"""Folders of strangers: every rule says pass, fail or unknown with a reason, whatever lies there, and
nothing is run.
"""

import base64
import json
import lzma
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import SpecError
from schemas.quantizer_settings import GptqLite
from stages.core.blob.packing import pack
from stages.core.calibrated.whole_model import quantize_state
from stages.submission.rules import RULES, check_folder

SCRIPT = '''"""A baseline."""
import glob
import os

import torch

train_files = os.path.join("data", "fineweb_train_*.bin")


class Loader:
    def __init__(self, pattern):
        self.paths = sorted(glob.glob(pattern))


def eval_val(model, val_tokens):
    model.eval()
    return lookup(val_tokens)


def lookup(tokens):
    return len(tokens)


def main():
    train_loader = Loader(train_files)
    print(eval_val(torch.nn.Linear(1, 1), [1, 2]), train_loader)
'''
INFO = {
    "author": "Someone",
    "github_id": "someone",
    "name": "Baseline",
    "blurb": "",
    "date": "2026-03-18",
    "val_loss": 2.06035852,
    "val_bpb": 1.21687994,
    "bytes_total": 15_863_068,
    "bytes_code": len(SCRIPT),
    "wallclock_seconds": 600.028,
}
LOG = (
    "step:1/20000 train_loss:6.9 train_time:120ms\nfinal_int8_zlib_roundtrip val_loss:2.0604 "
    "val_bpb:1.2169 eval_time:1530ms\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder in the shape of the published baseline: no model in it."""
    made = tmp_path / "of someone"
    made.mkdir()
    (made / "README.md").write_text("Scores val_bpb **1.2169** after int8.\n")
    (made / "submission.json").write_text(json.dumps(INFO))
    (made / "train.log").write_text(LOG)
    (made / "train_gpt.py").write_text(SCRIPT)
    return made


def verdicts(folder: Path) -> dict[str, str]:
    found = check_folder(folder)
    assert [rule.rule for rule in found] == list(RULES)
    assert all(rule.reason and len(rule.reason) < 1000 for rule in found)
    return {rule.rule: rule.verdict for rule in found}


def reason(folder: Path, rule: str) -> str:
    return next(found.reason for found in check_folder(folder) if found.rule == rule)


def write_info(folder: Path, **changes: Any) -> None:
    (folder / "submission.json").write_text(json.dumps(INFO | changes))


def test_a_sound_folder_without_model_passes_what_can_be_known(folder: Path) -> None:
    found = verdicts(folder)
    assert {rule for rule, verdict in found.items() if verdict != "pass"} == {"seeds", "model.fwz is sound"}
    assert found["seeds"] == found["model.fwz is sound"] == "unknown"
    assert "as submission.json says" in reason(folder, "bytes as shipped")
    assert "the step that crosses the cap was finished" in reason(folder, "training time")


@pytest.mark.parametrize("name", ["README.md", "submission.json", "train_gpt.py", "train.log"])
@pytest.mark.parametrize(
    "harm", ["missing", "empty", "a folder", "a link", "a pipe", "no text", "unreadable bytes"]
)
def test_a_missing_or_broken_file_is_a_reason_and_never_an_error(name: str, harm: str, folder: Path) -> None:
    path = folder / name
    path.unlink()
    if harm == "empty":
        path.write_bytes(b"")
    elif harm == "a folder":
        path.mkdir()
    elif harm == "a link":
        path.symlink_to("/etc/passwd")
    elif harm == "a pipe":
        os.mkfifo(path)
    elif harm == "no text":
        path.write_bytes(b"\x00\xff\xfe\x80" * 50)
    elif harm == "unreadable bytes":
        path.write_bytes(os.urandom(200_000))
    found = verdicts(folder)
    if harm in ("missing", "empty", "a folder", "a link", "a pipe"):
        assert found["files present"] == "fail"
    if name == "submission.json":
        assert found["submission.json valid"] == "fail"
    if name == "train_gpt.py" and harm != "empty":
        assert found["train_gpt.py is Python"] == "fail"
        assert found["no network"] == "unknown"
    if name == "README.md":
        assert found["README's figures"] == "fail"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"val_bpb": NaN}',
        '{"val_bpb": Infinity}',
        '{"val_bpb": 1' + "0" * 5000 + "}",
        '{"val_bpb": 1.2, "val_bpb": 1.1}',
        json.dumps(INFO | {"val_bpb": "1.2"}),
        json.dumps(INFO | {"val_bpb": True}),
        json.dumps(INFO | {"val_bpb": -1.2}),
        json.dumps(INFO | {"author": ["x"]}),
        json.dumps(INFO | {"github_id": " "}),
        json.dumps(INFO | {"bytes_total": {}}),
    ],
    ids=range(16),
)
def test_a_submission_json_that_is_none_is_refused_with_a_reason(text: str, folder: Path) -> None:
    (folder / "submission.json").write_text(text)
    assert verdicts(folder)["submission.json valid"] == "fail"


@pytest.mark.parametrize(
    "seeds",
    [{"seed_results": value} for value in ([], 7, "x", {"1": None}, {"1": {"val_bpb": "x"}}, {"1": {}})]
    + [
        {"seed_results": {"1337": {"val_bpb": 1.21687994}}, "seeds": value}
        for value in ([1], [1337, 7], [[]], [None])
    ]
    + [
        {"seed_results": {"1337": {"val_bpb": 1.3}}},
        {"seed_results": {"1337": 1.21687994, "42": 1.21687994}},
    ],
)
def test_seeds_that_do_not_agree_never_pass(seeds: dict, folder: Path) -> None:
    (folder / "train_seed1337.log").write_text(LOG)
    write_info(folder, **seeds)
    assert verdicts(folder)["seeds"] in ("fail", "unknown")


def test_seeds_with_results_and_logs_pass(folder: Path) -> None:
    (folder / "train_seed1337.log").write_text(LOG)
    (folder / "train.log").write_text("seed:42\n" + LOG)
    write_info(
        folder, seed_results={"1337": {"val_bpb": 1.21687}, "42": {"val_bpb": 1.21689}}, seeds=[42, 1337]
    )
    assert verdicts(folder)["seeds"] == "pass"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import requests", "requests"),
        ("from urllib.request import urlretrieve", "urllib.request"),
        ("from urllib import request", "urllib.request"),
        ("import torch.hub", "torch.hub"),
        ("torch.hub.load('a/b', 'c')", "torch.hub.load"),
        ("os.system('wget http://x/model.bin')", "wget"),
        ("import subprocess\nsubprocess.run(['pip', 'install', 'x'])", "pip install"),
        (
            "import subprocess, sys\nsubprocess.check_call([sys.executable, '-m', 'pip', 'install', 'x'])",
            "pip install",
        ),
        ("import subprocess\nsubprocess.run(['git', 'rev-parse', 'HEAD'])", ""),
        ("import subprocess\nsubprocess.run('pip install x', shell=True)", "pip install"),
        ("def f():\n    from huggingface_hub import hf_hub_download", "huggingface_hub"),
    ],
)
def test_a_program_that_fetches_is_found(line: str, found: str, folder: Path) -> None:
    source = SCRIPT + line + "\n"
    (folder / "train_gpt.py").write_text(source)
    write_info(folder, bytes_code=len(source))
    assert verdicts(folder)["no network"] == ("fail" if found else "pass")
    assert found in reason(folder, "no network")


def test_an_evaluation_that_leads_to_training_data_is_found_with_its_way(folder: Path) -> None:
    source = SCRIPT.replace("return len(tokens)", "return Loader(train_files)")
    (folder / "train_gpt.py").write_text(source)
    assert verdicts(folder)["no training data at evaluation"] == "fail"
    assert "eval_val → lookup: train_files" in reason(folder, "no training data at evaluation")
    (folder / "train_gpt.py").write_text("x = 1\n")
    assert verdicts(folder)["no training data at evaluation"] == "unknown"
    (folder / "train_gpt.py").write_text("print(open('fineweb_train_0.bin'))\n")
    assert verdicts(folder)["no training data at evaluation"] == "unknown"
    (folder / "train_gpt.py").write_text("print('hi')\n")
    assert verdicts(folder)["no training data at evaluation"] == "pass"


@pytest.mark.parametrize("packing", ["lzma b85", "zlib b64", "lzma bytes", "twice"])
def test_a_program_that_unpacks_itself_is_unpacked_and_read(
    packing: str, folder: Path, tmp_path: Path
) -> None:
    inner = (
        SCRIPT
        + "import requests\n"
        + f"open({str(tmp_path / 'owned')!r}, 'w')\n"
        + "# "
        + os.urandom(600).hex()
        + "\n"
    ).encode()

    def pack_up(source: bytes, how: str) -> bytes:
        if how == "lzma b85":
            text = base64.b85encode(lzma.compress(source)).decode()
            return f"import lzma,base64\nexec(lzma.decompress(base64.b85decode({text!r})))".encode()
        if how == "zlib b64":
            packed = base64.b64encode(zlib.compress(source))
            return f"import zlib,base64\nexec(zlib.decompress(base64.b64decode({packed!r})))".encode()
        if how == "lzma bytes":
            return f"import lzma\nexec(lzma.decompress({lzma.compress(source)!r}))".encode()
        return pack_up(pack_up(source, "zlib b64"), "lzma b85")

    (folder / "train_gpt.py").write_bytes(pack_up(inner, packing))
    found = verdicts(folder)
    assert (found["train_gpt.py is Python"], found["no network"]) == ("pass", "fail")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "source",
    [
        "import os\nexec(os.environ['X'])\ndef eval_val(): ...\n",
        "exec(open('y').read())\ndef eval_val(): ...\n",
        "import importlib\nimportlib.import_module('x')\ndef eval_val(): ...\n",
        f"import zlib\nexec(zlib.decompress({b'not compressed' * 100!r}))\ndef eval_val(): ...\n",
    ],
)
def test_code_that_the_text_does_not_show_is_unknown_and_not_pass(source: str, folder: Path) -> None:
    (folder / "train_gpt.py").write_text(source)
    found = verdicts(folder)
    assert found["no network"] == found["no training data at evaluation"] == "unknown"


@pytest.mark.parametrize(
    "source",
    [
        b"def f(:\n",
        b"x = 1\x00",
        b"(" * 5_000,
        b"x = " + b"-" * 200_000 + b"1",
        b"x = " + b"a." * 100_000 + b"b()",
        b"# coding: nonsense\nx = 1\n",
        b"import zlib\nexec(zlib.decompress(" + repr(zlib.compress(bytes(300 * 2**20), 9)).encode() + b"))",
        b"import lzma\nexec(lzma.decompress("
        + repr(lzma.compress(b"while:\n" * 1000)).encode()
        + b"))"
        + b"#" * 600,
    ],
    ids=["syntax", "null", "parentheses", "minus", "attributes", "coding", "bomb", "no python"],
)
def test_hostile_sources_end_in_a_verdict(source: bytes, folder: Path) -> None:
    (folder / "train_gpt.py").write_bytes(source)
    found = verdicts(folder)
    assert found["no training data at evaluation"] != "pass"


def test_nothing_of_a_folder_is_run_or_imported(folder: Path, tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'owned')!r}, 'w')\n"
    for name in ("train_gpt.py", "__init__.py", "sitecustomize.py", "torch.py", "json.py", "conftest.py"):
        (folder / name).write_text(trap)
    check_folder(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("info", "log", "rule", "verdict"),
    [
        ({"wallclock_seconds": 615}, LOG, "training time", "fail"),
        ({"wallclock_seconds": None}, LOG, "training time", "pass"),
        ({"wallclock_seconds": None}, "step:9 train_time:700123ms\n", "training time", "fail"),
        ({"wallclock_seconds": None}, "nothing\n", "training time", "unknown"),
        ({"wallclock_seconds": 12}, "step:9 train_time:700123ms\n", "training time", "fail"),
        ({"eval_time_seconds": 601}, LOG, "evaluation time", "fail"),
        ({}, "nothing\n", "evaluation time", "unknown"),
        ({"bytes_total": 16_000_000}, LOG, "bytes as shipped", "pass"),
        ({"bytes_total": 16_000_001}, LOG, "bytes as shipped", "fail"),
        ({"bytes_total": None}, LOG, "bytes as shipped", "unknown"),
        ({"bytes_code": len(SCRIPT) + 1}, LOG, "bytes as declared", "fail"),
        ({"val_bpb": 1.2168}, LOG, "README's figures", "fail"),
    ],
)
def test_limits_and_figures(info: dict, log: str, rule: str, verdict: str, folder: Path) -> None:
    write_info(folder, **info)
    (folder / "train.log").write_text(log)
    assert verdicts(folder)[rule] == verdict


def test_bytes_on_disk_count_whatever_the_folder_says(folder: Path) -> None:
    (folder / "final_model.int8.ptz").write_bytes(bytes(16_000_001 - len(SCRIPT)))
    assert verdicts(folder)["bytes as shipped"] == "fail"
    assert "1 over the limit" in reason(folder, "bytes as shipped")


def test_our_model_is_read_and_a_damaged_one_is_named(
    folder: Path, tiny_model: Any, tiny_state: dict[str, torch.Tensor]
) -> None:
    blob = pack(quantize_state(tiny_state, GptqLite()), {"model": asdict(tiny_model)}, 3)
    (folder / "model.fwz").write_bytes(blob)
    write_info(folder, bytes_total=len(SCRIPT) + len(blob))
    found = verdicts(folder)
    assert found["model.fwz is sound"] == found["bytes as declared"] == "pass"
    (folder / "model.fwz").write_bytes(blob[:-1])
    found = verdicts(folder)
    assert found["model.fwz is sound"] == found["bytes as declared"] == "fail"


def test_long_lines_and_many_files_end_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "README.md").write_text("0.000." * 300_000 + "\n1.2169\n")
    (folder / "train.log").write_text("val_bpb_x " * 300_000 + "\n" + LOG)
    assert verdicts(folder)["README's figures"] == "pass"
    monkeypatch.setattr("stages.submission.untrusted.MAX_FILES", 50)
    for index in range(50):
        (folder / f"{index}").touch()
    assert "pass" not in {
        verdicts(folder)[rule] for rule in ("files present", "train_gpt.py is Python", "no network")
    }


@pytest.mark.parametrize("make", [lambda path: None, Path.touch])
def test_what_is_no_folder_is_bad_input(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(SpecError, match="no such folder"):
        check_folder(tmp_path / "x")
