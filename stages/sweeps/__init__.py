"""Search for settings by Optuna: the trials of a sweep in a journal, and the rules that prune them."""
