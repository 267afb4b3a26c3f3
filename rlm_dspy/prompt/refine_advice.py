"""Gives the advice of `dspy.Refine` to predictors with adapters of their own (dspy 3.4.1).

Refine passes its advice in an adapter made for each attempt, which a predictor with its own adapter never calls.
The advice is only in the closure of that adapter's `__call__`, by the names of the predictors.
"""

from __future__ import annotations

import contextlib
import itertools
from contextvars import ContextVar
from typing import TYPE_CHECKING

import dspy

if TYPE_CHECKING:
    from collections.abc import Iterator

_advice: ContextVar[str] = ContextVar("_advice", default="")


@contextlib.contextmanager
def speaking(predictor: dspy.Predict, adapter: dspy.Adapter) -> Iterator[None]:
    """Use a predictor's own adapter in this scope, in which `hint` returns the predictor's advice."""
    token = _advice.set(_advice_to(predictor))
    try:
        with dspy.context(adapter=adapter):
            yield
    finally:
        _advice.reset(token)


def hint() -> str:
    """Return the advice to the predictor that is called, as a paragraph; empty without one."""
    return f"Hint from an earlier attempt: {_advice.get()}" if _advice.get() else ""


def _advice_to(predictor: dspy.Predict) -> str:
    call = getattr(type(dspy.settings.adapter), "__call__", None)  # noqa: B004  # its closure is read, not called
    names_of_cells = getattr(getattr(call, "__code__", None), "co_freevars", ())
    held = dict(zip(names_of_cells, getattr(call, "__closure__", None) or (), strict=True))
    if not {"advice", "signature2name"} <= held.keys():
        return ""
    name = _name_of(predictor) or held["signature2name"].cell_contents.get(predictor.signature)  # that of a copy
    return str((held["advice"].cell_contents or {}).get(name, ""))


def _name_of(predictor: dspy.Predict) -> str | None:
    """Return the name of a predictor in the module that Refine calls.

    Refine itself names predictors by their signatures, which RLMs share.
    """
    called = itertools.pairwise(dspy.settings.caller_modules or [])
    refined = [module for caller, module in called if isinstance(caller, dspy.Refine)]
    named = refined[-1].named_predictors() if refined else []
    return next((name for name, each in named if each is predictor), None)
