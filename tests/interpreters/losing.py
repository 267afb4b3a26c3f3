"""A run that loses its remote interpreter."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy import RLM
from rlm_dspy.interpreters.host import servers
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.interpreters import remote


def run_through_a_loss(box: remote.Box, cut: Callable[[], object]) -> None:
    """Run a program whose connection is cut in its second cell."""

    def lose() -> str:
        """End the connection."""
        cut()
        time.sleep(30)
        return ""

    turns = ["x = 41", "lose()", "print('x' in globals(), len(context))", "SUBMIT(answer=len(context))"]
    lm = ScriptedLM([f"```python\n{turn}\n```" for turn in turns])
    rlm = RLM("context -> answer: int", tools=[lose], interpreter_factory=box, max_iters=6)
    with dspy.context(lm=lm):
        prediction = rlm(context="c" * 200_000)
    assert prediction.answer == 200_000
    outputs = [turn["output"] for turn in prediction.trajectory]
    assert f"The connection to {transport_name(box)} was lost" in outputs[1]
    assert outputs[2].startswith("False 200000")


def transport_name(box: remote.Box) -> str:
    """Return what the model is told of the connection."""
    server: Any = servers.server_for(box.place)
    return str(server._link._transport.name)
