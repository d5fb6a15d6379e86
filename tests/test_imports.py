"""Contracts about imports that a list of forbidden names would leave holes in; the others are
import-linter's, in pyproject.toml.
"""

import sys
import tomllib
from pathlib import Path

import grimp
import pytest

from schemas.package import ALLOWED_PACKAGES
from schemas.stages import STORED
from stages.packaging.bundle import SHIPPED_MODULES

OURS = ("schemas", "presets", "stages", "flows")
SETTINGS = set(SHIPPED_MODULES)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*OURS, include_external_packages=True, cache_dir=None)


def test_the_core_imports_its_settings_and_what_ships_and_nothing_else(graph: grimp.ImportGraph) -> None:
    shipped = {"stages.core", *graph.find_descendants("stages.core"), *SETTINGS}
    imported = {
        name for module in shipped for name in graph.find_modules_directly_imported_by(module)
    } - shipped
    assert imported - set(sys.stdlib_module_names) == ALLOWED_PACKAGES | {"triton"}
    users = {
        module for module in graph.find_modules_that_directly_import("triton") if module.startswith("stages")
    }
    assert users == {"stages.core.fused_kernels"}


def test_every_stage_is_in_the_layer_that_keeps_stages_apart() -> None:
    contracts = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"][
        "importlinter"
    ]["contracts"]
    [order] = [contract["layers"] for contract in contracts if contract.get("containers") == ["stages"]]
    assert set(STORED) in [set(layer.split(" | ")) for layer in order]
