"""Tells whether a function, module or LM can be awaited, and whether it can share an event loop."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy._dspy_compat import has_async_engine

if TYPE_CHECKING:
    from collections.abc import Callable

_OURS = ("dspy", "rlm_dspy")
_AGENTS = (dspy.ReAct, dspy.ReActV2)


def is_async(tool: Callable[..., Any]) -> bool:
    """Return whether a function, or the one in a `dspy.Tool`, returns a coroutine or wraps one that does."""
    function = tool.func if isinstance(tool, dspy.Tool) else tool
    return getattr(function, "stands_for_async", False) or any(
        map(inspect.iscoroutinefunction, (function, type(function).__call__))
    )


def has_forward(module: dspy.Module) -> bool:
    """Return whether a module has a sync form."""
    return "forward" in vars(module) or hasattr(type(module), "forward")  # DSPy warns if `forward` is read


def must_be_awaited(module: dspy.Module) -> bool:
    """Return whether a module has only an async form, or is a ReAct with an async tool."""
    if isinstance(module, _AGENTS):
        return any(map(is_async, module.tools.values()))
    return not has_forward(module) and callable(getattr(module, "aforward", None))


def can_be_awaited(module: dspy.Module, lm: dspy.BaseLM | None = None) -> bool:
    """Return whether a module, and every LM that it may call, has an async form.

    A ReAct does not count: a tool that is a plain function would block the event loop.

    Args:
        module: The module.
        lm: The LM passed to the call, if one is.
    """
    has_async_form = callable(getattr(module, "aforward", None)) and not isinstance(module, _AGENTS)
    return has_async_form and all(map(_has_aforward, _lms_of(module, lm)))


def can_share_a_loop(module: dspy.Module, lm: dspy.BaseLM | None = None) -> bool:
    """Return whether a module never blocks the event loop that awaits it.

    These are the predictors of DSPy and of this package over DSPy's own engines, unless their replies are
    streamed to another loop.
    """
    return (
        isinstance(module, dspy.Predict | dspy.ChainOfThought)
        and type(module).__module__.partition(".")[0] in _OURS
        and dspy.settings.send_stream is None
        and can_be_awaited(module, lm)
        and all(isinstance(getattr(each, "engine", None), str) for each in _lms_of(module, lm))
    )


def can_be_streamed(module: dspy.Module) -> bool:
    """Return whether a module can be awaited, and DSPy itself requests the replies of its LMs, sync and async."""
    return can_be_awaited(module) and all(
        type(lm).forward is dspy.LM.forward and type(lm).aforward is dspy.LM.aforward
        for lm in _lms_of(module, None)
    )


def _lms_of(module: dspy.Module, lm: dspy.BaseLM | None) -> list[dspy.BaseLM]:
    lms = [dspy.settings.lm, lm, *(predictor.lm for _, predictor in module.named_predictors())]
    return [each for each in lms if each is not None]


def _has_aforward(lm: dspy.BaseLM) -> bool:
    if type(lm).aforward is dspy.BaseLM.aforward:
        return False
    return isinstance(getattr(lm, "engine", "auto"), str) or has_async_engine(lm)
