"""Where an answer comes from, and a warning before one that read little of the inputs."""

from rlm_dspy.grounding.of_run import RunGrounding
from rlm_dspy.grounding.options import Grounding
from rlm_dspy.grounding.sources import Seen
from rlm_dspy.trajectory import Place

__all__ = ["Grounding", "Place", "RunGrounding", "Seen"]
