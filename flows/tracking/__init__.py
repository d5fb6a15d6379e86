"""Experiment trackers: a process beside the run passes the training's figures on to one of them."""
