"""Inputs of a run: forms, settings, and the spec made from them."""
