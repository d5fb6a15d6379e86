"""Content-addressed store of results: its keys, records, runs, checksums and housekeeping."""
