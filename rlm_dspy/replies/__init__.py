"""Parses a model's reply into thinking, prose and code."""
