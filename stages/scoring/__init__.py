"""Scores of models and packages, made in processes of their own."""
