"""The report's page and plots."""
