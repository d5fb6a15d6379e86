"""Report of a run: its page, tables and plots."""
