"""Presentation of results: rows, sentences and Prefect artifacts."""
