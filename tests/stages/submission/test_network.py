"""Every row of the table of what reaches the network, and every way to write it."""

import sys

import pytest

from stages.submission.network import (
    FETCHERS,
    FETCHING_CALLS,
    FETCHING_MODULES,
    HARMLESS_MODULES,
    INSTALLERS,
    POSSIBLE_MODULES,
)
from stages.submission.static_code import inspect_program


def judged(source: str) -> str:
    found = inspect_program(source.encode())
    assert not found.parsed, found.parsed
    return "fail" if found.network else "unknown" if found.network_possible or found.unseen else "pass"


@pytest.mark.parametrize(("module", "why"), sorted(FETCHING_MODULES.items()))
def test_a_module_that_fetches_fails_however_it_is_imported(module: str, why: str) -> None:
    parent, _, child = module.rpartition(".")
    forms = [
        f"import {module}",
        f"import {module} as m",
        f"from {module} import x",
        f"def f():\n    import {module}",
    ]
    forms += [f"__import__('{module}')", f"import importlib\nimportlib.import_module('{module}')"]
    forms += [
        f"from importlib import import_module as load\nload('{module}')",
        f"NAME = '{module}'\n__import__(NAME)",
    ]
    if parent:
        forms += [
            f"from {parent} import {child}",
            f"import {parent}\n{module}.x()",
            f"import {parent} as p\np.{child}.x()",
        ]
        forms += [f"import {parent}\ngetattr({parent}, '{child}').x()"]
    for form in forms:
        assert judged(form) == "fail", form
        assert why in inspect_program(form.encode()).network[0]


@pytest.mark.parametrize(("module", "why"), sorted(POSSIBLE_MODULES.items()))
def test_a_module_that_may_use_the_network_is_unknown(module: str, why: str) -> None:
    for form in (
        f"import {module}",
        f"import {module} as m\nm.x()",
        f"from {module} import x",
        f"__import__('{module}')",
    ):
        assert judged(form) == "unknown", form
        assert why in inspect_program(form.encode()).network_possible[0]


@pytest.mark.parametrize("module", sorted(HARMLESS_MODULES))
def test_a_module_that_only_shares_a_package_passes(module: str) -> None:
    parent, _, child = module.rpartition(".")
    assert judged(f"from {parent} import {child}\nprint({child})") == "pass"


@pytest.mark.parametrize(("call", "why"), sorted(FETCHING_CALLS.items()))
def test_a_call_that_fetches_fails_on_whatever_object(call: str, why: str) -> None:
    for form in (
        f"x.{call}('a')",
        f"from somewhere import {call} as f\nf('a')",
        f"getattr(x, '{call}')('a')",
    ):
        assert judged(form) == "fail", form


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("import socket\ns=socket.create_connection(('e',80))", "fail"),
        ("import socket\nprint(socket.gethostname())", "unknown"),
        ("import socket as s\ns.create_connection(('localhost', 1))", "unknown"),
        ("import asyncio\nasyncio.open_connection('e', 80)", "fail"),
        ("import urllib\nurllib.request.urlopen('x')", "fail"),
        ("import urllib as u\nr = u.request\nr.Request('x')", "fail"),
        ("r = __import__('requests')\nr.get('x')", "fail"),
        ("import importlib\nimportlib.import_module(name)", "unknown"),
        ("__import__(''.join(['req', 'uests']))", "unknown"),
        ("exec('import requests')", "fail"),
        ("exec(text)", "unknown"),
        ("eval('__import__(\"requests\")')", "fail"),
        ("import builtins\nbuiltins.exec(text)", "unknown"),
        ("import runpy\nrunpy.run_path('other.py')", "unknown"),
        ("import ctypes\nctypes.CDLL('libc.so.6')", "unknown"),
        (
            "import torch\nimport torch.distributed as dist\ndist.init_process_group('nccl')\nmodel.eval()",
            "pass",
        ),
        ("def load_dataset(files):\n    return files\nload_dataset(['a'])", "pass"),
        ("from datasets import load_dataset\nload_dataset('x')", "fail"),
        ("model.connect(1)\nrequests = 3\nprint(requests)", "pass"),
    ],
)
def test_code_that_connects(source: str, verdict: str) -> None:
    assert judged(source) == verdict


@pytest.mark.parametrize(
    "command", [*sorted(FETCHERS), *(f"{name} {(*then, '')[0]}".strip() for name, then in INSTALLERS.items())]
)
def test_a_command_that_fetches_fails_however_it_is_run(command: str) -> None:
    words = [*command.split(), "x"]
    line = " ".join(words)
    for form in (
        f"import subprocess\nsubprocess.run({words})",
        f"import subprocess as s\ns.check_call({words}, check=True)",
        f"from subprocess import Popen as P\nP(args={words})",
        f"import subprocess\nsubprocess.run('{line}', shell=True)",
        f"import subprocess\ncmd = {words}\nsubprocess.run(cmd)",
        f"import subprocess\nsubprocess.run('{line}'.split())",
        f"import subprocess\nsubprocess.run(['bash', '-c', 'cd /tmp && {line}'])",
        f"import subprocess, sys\nsubprocess.check_call([sys.executable, '-m', *{words}])",
        f"import os\nos.system('{line}')",
        f"import os\nos.popen(f'{line} {{name}}')",
        f"import os\ngetattr(os, 'system')('/usr/bin/{line}')",
        f"import os\nos.execvp('{words[0]}', {words})",
        f"import subprocess\nsubprocess.getoutput('{line}')",
    ):
        assert judged(form) == "fail", form


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("subprocess.run(['nvidia-smi'], capture_output=True)", "pass"),
        ("subprocess.run(['git', 'rev-parse', 'HEAD'])", "pass"),
        ("subprocess.check_output('nvcc --version', shell=True)", "pass"),
        ("subprocess.run(['lrzip', '-d', path])", "pass"),
        ("subprocess.run(command)", "unknown"),
        ("subprocess.run([sys.executable, 'other.py'])", "unknown"),
        ("subprocess.run(['bash', 'setup.sh'])", "unknown"),
        ("subprocess.run(f'{tool} --help', shell=True)", "unknown"),
        ("subprocess.run(['echo', 'https://x'])", "fail"),
        ("trainer.run('wget x')", "pass"),
        ("pip.main(['install', 'x'])", "fail"),
        ("print('pip install brotli, then wget the data')", "pass"),
    ],
)
def test_other_commands(source: str, verdict: str) -> None:
    imports = "import subprocess, sys\n" + ("import pip\n" if "pip.main" in source else "")
    assert judged(imports + source) == verdict


def test_the_names_of_the_standard_library_are_right() -> None:
    named = {name.partition(".")[0] for name in (*FETCHING_MODULES, *POSSIBLE_MODULES)}
    network = {
        "socket",
        "ssl",
        "asyncio",
        "socketserver",
        "urllib",
        "http",
        "ftplib",
        "smtplib",
        "poplib",
        "imaplib",
        "xmlrpc",
        "webbrowser",
    }
    assert network <= named
    assert network <= sys.stdlib_module_names
