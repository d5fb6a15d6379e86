"""Quantizers that need a model and a text."""
