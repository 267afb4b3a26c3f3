"""How sub-calls are told to whoever listens. DSPy has callbacks for modules, LMs and tools; these are ours."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import dspy

from rlm_dspy._dspy_compat import BaseCallback

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.trajectory import SubCall

_logger = logging.getLogger("dspy.rlm_dspy")


class SubCallListener(BaseCallback):
    """A DSPy callback that also hears of sub-calls."""

    def on_subcall_end(self, call: SubCall) -> None:
        """Hear of a sub-call that has ended, in the context it ran in: answered, failed, or refused."""


def tell(entry: Callable[[], SubCall]) -> None:
    """Tell every listener among DSPy's callbacks of a sub-call that has ended.

    Args:
        entry: Gives the sub-call; called only if somebody listens.
    """
    listeners = [callback for callback in dspy.settings.callbacks if isinstance(callback, SubCallListener)]
    if not listeners:
        return
    call = entry()
    for listener in listeners:
        try:
            listener.on_subcall_end(call)
        except Exception as error:  # noqa: BLE001 (as DSPy does it with its own callbacks)
            _logger.warning("A listener to sub-calls failed: %s: %s", type(listener).__name__, error)
