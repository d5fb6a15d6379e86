"""Settings of the run that this program repeats, and its machine.

They stand here in a script that ships, and nowhere else.
"""

from schemas.recipe import Recipe

RECIPE: Recipe | None = None
MADE_ON = ""
