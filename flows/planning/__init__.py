"""The plan of a run before it starts."""
