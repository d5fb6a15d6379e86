"""A stage as a Prefect task, and its progress."""
