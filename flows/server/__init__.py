"""Prefect server: its settings, preparation, runs, and `fairway up`."""
