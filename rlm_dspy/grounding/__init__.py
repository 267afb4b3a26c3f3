"""Where an answer comes from, and a warning before one that read little of the inputs."""

from rlm_dspy.grounding.evidence import Evidence
from rlm_dspy.grounding.options import Grounding, check_grounding
from rlm_dspy.grounding.sources import Seen, find_sources
from rlm_dspy.grounding.unread import unread
from rlm_dspy.trajectory import Place

__all__ = ["Evidence", "Grounding", "Place", "Seen", "check_grounding", "find_sources", "unread"]
