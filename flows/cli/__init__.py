"""Command line: a module for each command, or for related commands."""
