"""Defines the signatures `Act` (one turn) and `Query` (`llm_query`), and reads and writes policies."""

from rlm_dspy.signatures.act import Act, Query
from rlm_dspy.signatures.first_message import Environment, Output
from rlm_dspy.signatures.policy import load_policy, policy_for, read_policy, shipped_policies, write_policy

__all__ = [
    "Act",
    "Environment",
    "Output",
    "Query",
    "load_policy",
    "policy_for",
    "read_policy",
    "shipped_policies",
    "write_policy",
]
