"""Hooks that review a run: `RLM(on_code=..., on_tool=..., on_submit=...)`, and a ready-made one for a person."""

from rlm_dspy.approval.reviewer import OnCode, OnSubmit, OnTool, RunInstead
from rlm_dspy.approval.terminal import ask_at_terminal
from rlm_dspy.errors import HookFailed, Pause, ToolRefused

__all__ = ["HookFailed", "OnCode", "OnSubmit", "OnTool", "Pause", "RunInstead", "ToolRefused", "ask_at_terminal"]
