"""Shows and stores runs while they happen, and replays them: console, progress, event log."""

from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.progress import Progress

__all__ = ["Progress", "RunLog"]
