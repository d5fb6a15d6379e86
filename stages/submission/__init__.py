"""Submission folders: made from runs, checked by the published rules, scored again."""
