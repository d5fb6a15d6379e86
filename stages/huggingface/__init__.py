"""A run's model as a folder for Hugging Face Transformers."""
