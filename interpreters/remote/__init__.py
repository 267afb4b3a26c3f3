"""Interpreters on other machines, in containers and in sandboxes: whatever runs a command with stdin and stdout.

    from rlm_dspy.interpreters import remote

    rlm = RLM("context, question -> answer", interpreter_factory=remote.argv("ssh", "lab", shell=True))

Python 3.11 or later and its standard library are all that has to be there.
"""

from __future__ import annotations

from rlm_dspy.interpreters.remote.box import Box, RemoteInterpreter, argv
from rlm_dspy.interpreters.remote.services import daytona, e2b, modal, prime

__all__ = ["Box", "RemoteInterpreter", "argv", "daytona", "e2b", "modal", "prime"]
