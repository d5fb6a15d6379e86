"""Estimates of what a run takes: memory, disk and seconds, and a probe that measures a few steps."""
