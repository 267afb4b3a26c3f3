"""Optimization: demos from whole runs, feedback and rewards from trajectories, policies, data for fine-tuning.

Every optimizer of DSPy works on a program with an RLM inside; what is here makes them work better.
"""

from rlm_dspy.examples import compact, read_examples
from rlm_dspy.feedback import Penalties, trajectory_reward, with_feedback
from rlm_dspy.trajectory_few_shot import TrajectoryFewShot

__all__ = [
    "Penalties",
    "TrajectoryFewShot",
    "compact",
    "read_examples",
    "trajectory_reward",
    "with_feedback",
]
