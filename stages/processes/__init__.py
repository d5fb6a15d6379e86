"""Processes: children of a stage, this one, their cores, environment, locks and end."""
