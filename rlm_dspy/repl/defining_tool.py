"""Defines `DefiningTool`, a tool whose answer defines functions in the REPL of the code that calls it."""

from __future__ import annotations

from typing import TypedDict

import dspy

HIDDEN = "_rlm_define_"
"""Before the name of such a tool: its host function; code calls the one that `in_repl/names.py` makes of it."""


class Definition(TypedDict):
    """What a `DefiningTool` returns to the REPL.

    Attributes:
        name: The name of the module that `source` is run as; empty if there is no source.
        source: Python that the REPL runs; the public functions and classes that it defines get their names there.
        shown: What the REPL prints.
        value: What the call returns.
    """

    name: str
    source: str
    shown: str
    value: str | None


class DefiningTool(dspy.Tool):
    """A tool that returns a `Definition`, which the REPL carries out: nothing of it runs on the host.

    Attributes:
        listing: Lines that the prompt shows below the tool.
    """

    listing: tuple[str, ...] = ()
