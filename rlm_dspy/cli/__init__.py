"""The `rlm-dspy` command line: one module for each command."""

from rlm_dspy.cli.app import main

__all__ = ["main"]
