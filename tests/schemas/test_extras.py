import tomllib
from pathlib import Path

import pytest

from schemas.errors import SpecError
from schemas.extras import REQUIREMENTS, require_package

ROOT = Path(__file__).parents[2]


def test_refusals_and_extras_name_the_same_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    chosen = {name for extra in ("sweep", "track", "eval", "remote", "dask", "ray") for name in extras[extra]}
    assert chosen <= set(REQUIREMENTS.values())
    # These two have no extra: large, and each user has his own.
    assert set(REQUIREMENTS.values()) - chosen == {"mlflow", "wandb"}


def test_a_missing_package_is_refused_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemas.extras.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"^engine = x: needs the package prefect-dask\. Install it: .* -m"):
        require_package("prefect_dask", "engine = x")
    monkeypatch.undo()
    require_package("pytest", "tests")
