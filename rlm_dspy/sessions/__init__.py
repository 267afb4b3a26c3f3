"""Calls of an RLM that share a REPL and a conversation: `rlm.session(...)`, saved and opened again."""

from rlm_dspy.sessions.session import Session

__all__ = ["Session"]
