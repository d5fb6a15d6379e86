"""Packages that only some commands need: the requirement of each, and the refusal where it is missing."""

import sys
from importlib.util import find_spec

from schemas.errors import SpecError

REQUIREMENTS = {
    "lm_eval": "lm-eval>=0.4.13,<0.5",
    "mlflow": "mlflow",
    "obstore": "obstore>=0.12,<0.13",
    "optuna": "optuna>=5,<6",
    "prefect_dask": "prefect-dask>=0.3.7,<0.4",
    "prefect_ray": "prefect-ray>=0.6,<0.7",
    "tensorboard": "tensorboard>=2.20",
    "trackio": "trackio>=0.43,<0.44",
    "wandb": "wandb",
}
"""By the name under which it is imported; the extras of pyproject.toml name the same."""


def require_package(module: str, what: str) -> None:
    """Raise the refusal of `what` if the package of `module` is not installed. Nothing is imported."""
    if find_spec(module) is None:
        raise missing_package(module, what)


def missing_package(module: str, what: str) -> SpecError:
    """The refusal of `what`, which needs `module`, with the install command."""
    name = module.replace("_", "-")
    return SpecError(
        f"{what}: needs the package {name}. Install it: {sys.executable} -m pip install "
        f"'{REQUIREMENTS[module]}'"
    )
