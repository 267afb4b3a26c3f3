"""What the loop predicts: `Act` (one turn), `Query` (one free prompt), and the policies saved of them."""

from rlm_dspy.signatures.act import Act, Query
from rlm_dspy.signatures.policy import load_policy, policy_for, shipped_policies

__all__ = ["Act", "Query", "load_policy", "policy_for", "shipped_policies"]
