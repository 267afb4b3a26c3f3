"""Recursive Language Models for DSPy."""
