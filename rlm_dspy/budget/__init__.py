"""Tracks the tokens and cost of a run, and rejects model calls that would exceed its limits."""
