"""Several runs of one configuration that differ in the seed: their ledger and statistics."""
