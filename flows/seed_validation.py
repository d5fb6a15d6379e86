"""placeholder"""
from prefect import flow
@flow(name="seed-validation")
def seed_validation(preset: str = "demo", new_seeds_per_run: int = 1, max_seeds: int = 10) -> None:
    """x"""
