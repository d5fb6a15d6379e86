"""A finished model before the tasks of lm-evaluation-harness. Only `harness` and `lm` import that library."""
