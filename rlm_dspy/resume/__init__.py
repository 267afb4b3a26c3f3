"""Lets a run whose process was gone go on from its event log."""
