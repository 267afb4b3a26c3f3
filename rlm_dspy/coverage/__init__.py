"""Records which parts of the inputs a run read, printed and sent to sub-models."""

from rlm_dspy.coverage.tracker import WATCHED, Occurrence, Watch, looked_into, watched, watching

__all__ = ["WATCHED", "Occurrence", "Watch", "looked_into", "watched", "watching"]
