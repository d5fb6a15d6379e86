"""Settings of the run that this program repeats. They stand here in a script that ships, and nowhere else."""

from schemas.settings import Recipe

RECIPE: Recipe | None = None
