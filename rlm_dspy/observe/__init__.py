"""Shows runs and logs their events while they happen, and reads the logs."""

from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.progress import Progress

__all__ = ["Progress", "RunLog"]
