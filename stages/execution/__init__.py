"""Runs a stage; knows the stages only by name."""
