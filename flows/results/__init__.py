"""Results as rows, sentences and artifacts."""
