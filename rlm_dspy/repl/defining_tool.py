"""Defines `DefiningTool`, a tool whose answer defines functions in the REPL of the code that calls it."""

from __future__ import annotations

from typing import TypedDict

import dspy

HIDDEN = "_rlm_define_"
"""The prefix of its host function's name; code calls the wrapper that `in_repl/names.py` makes."""


class Definition(TypedDict):
    """The answer of a `DefiningTool` to the REPL.

    Attributes:
        name: The name of the module in which `source` runs; empty if there is no source.
        source: Python code that the REPL runs; its public functions and classes become names of the REPL.
        shown: The text that the REPL prints.
        value: The value that the call returns.
    """

    name: str
    source: str
    shown: str
    value: str | None


class DefiningTool(dspy.Tool):
    """A tool that returns a `Definition`, which runs in the REPL and never on the host.

    Attributes:
        listing: Lines that the prompt shows below the tool.
    """

    listing: tuple[str, ...] = ()
