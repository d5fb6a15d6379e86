"""Submission folders: export from runs, checks against the published rules, and rescoring."""
