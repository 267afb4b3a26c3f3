"""Optimizes programs that contain an RLM: demos, feedback, rewards and fine-tuning data from their runs.

DSPy's optimizers work on a program with an RLM inside; this package improves their results.
"""

from rlm_dspy.optimize.datasets import compact, export_chats, read_examples
from rlm_dspy.optimize.feedback import Penalties, trajectory_reward, with_feedback
from rlm_dspy.optimize.policy_provenance import save_policy, with_policy
from rlm_dspy.optimize.promotion import Comparison, compare, promote
from rlm_dspy.optimize.trajectory_few_shot import TrajectoryFewShot
from rlm_dspy.signatures import load_policy

__all__ = [
    "Comparison",
    "Penalties",
    "TrajectoryFewShot",
    "compact",
    "compare",
    "export_chats",
    "load_policy",
    "promote",
    "read_examples",
    "save_policy",
    "trajectory_reward",
    "with_feedback",
    "with_policy",
]
