"""The Prefect server: its settings, what it needs, what it knows, and `fairway up`."""
