"""Modules that Transformers loads from the folder; the exporter reads their source and never imports them."""
