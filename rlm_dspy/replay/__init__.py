"""Runs the code of recorded runs again without a model."""
