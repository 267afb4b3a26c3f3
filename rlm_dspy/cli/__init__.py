"""The command line."""

from rlm_dspy.cli.app import main

__all__ = ["main"]
