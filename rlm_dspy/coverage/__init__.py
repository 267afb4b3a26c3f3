"""Records which parts of the inputs a run read, printed and sent to sub-models."""

from rlm_dspy.coverage.tracker import Occurrence, Watch, looked_into, watch_over, watched, watching

__all__ = ["Occurrence", "Watch", "looked_into", "watch_over", "watched", "watching"]
