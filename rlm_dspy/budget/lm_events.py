"""Turns DSPy's LM callbacks into `LMEvent`s for model calls made inside a run."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy._dspy_compat import BaseCallback
from rlm_dspy.budget.lm_info import Outputs, finish_reasons, reported_cost, tokens_of
from rlm_dspy.budget.metered_call import latest_entry, request_under_way
from rlm_dspy.budget.metered_lm import meters_in_force, role
from rlm_dspy.events import LMEvent, emit, here, listeners, unit
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlm_dspy.events import RunEvent, Unit


class LMEvents(BaseCallback):
    """Emits the events of all model calls inside runs."""

    def __init__(self) -> None:
        self._under_way: dict[str, LMEvent] = {}

    def on_lm_start(self, call_id: str, instance: dspy.BaseLM, inputs: Mapping[str, Any]) -> None:
        """Emit the start of a call."""
        if (outer := here()) is not None:
            event = self._under_way[call_id] = asked(call_id, instance, inputs, next(outer.lm_calls))
            emit(event)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Emit its end, with the reported usage."""
        if (event := self._under_way.pop(call_id, None)) is not None:
            emit(answered(event, outputs, exception))


def lm_events() -> contextlib.AbstractContextManager[object]:
    """Emit the events of model calls in this scope; nested scopes emit each event once."""
    callbacks = dspy.settings.callbacks
    if any(isinstance(callback, LMEvents) for callback in callbacks):
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[object] = dspy.context(callbacks=[*callbacks, LMEvents()])
    return scope


@contextlib.contextmanager
def observed(event: RunEvent) -> Iterator[Unit[RunEvent] | None]:
    """Emit the events of a run and of its model calls in this scope; yield None if nobody listens."""
    if not dspy.settings.callbacks or not listeners():
        yield None
        return
    with unit(event) as running, lm_events():
        yield running


def asked(call_id: str, lm: dspy.BaseLM, inputs: Mapping[str, Any], number: int = 0) -> LMEvent:
    """Return the start event of a model call.

    Args:
        call_id: DSPy's id of the call.
        lm: The LM.
        inputs: The arguments of the call, as in DSPy's callbacks.
        number: Its number in the run; 0 outside runs.
    """
    messages = tuple(inputs.get("messages") or ())
    return LMEvent(id=call_id, number=number, lm=lm, role=role(), prompt=inputs.get("prompt"), messages=messages)


def answered(event: LMEvent, outputs: Any, exception: BaseException | None) -> LMEvent:
    """Return the end event of a model call that has just ended."""
    used, meters, request = reported(outputs), meters_in_force(), request_under_way.get()
    price = meters[0].ledger.price(event.lm) if meters and used.cost is None else None
    return replace(
        event,
        phase="failed" if exception is not None else "ended",
        error=exception,
        outputs=outputs,
        finish=finish_reasons(request.entry(outputs).get("response")) if request is not None else (),
        usage=used.model_copy(update={"cached_calls": 0}),
        cached=bool(used.cached_calls),
        price=None if price is None else price.of(used.input_tokens, used.cached_input_tokens, used.output_tokens),
    )


def reported(outputs: Outputs) -> Usage:
    """Return the tokens and price of the LM call that has just ended, and whether it was cached.

    Tokens are 0 and the price is None if not reported, as for a failed call.

    Args:
        outputs: The outputs of the call.
    """
    request, entry = request_under_way.get(), latest_entry.get()
    if request is not None:
        entry = request.entry(outputs)
    elif entry.get("outputs") is not outputs:
        entry = {}
    if getattr(entry.get("response"), "cache_hit", False):
        return Usage(cached_calls=1)
    return Usage(cost=reported_cost(entry), **tokens_of(entry.get("usage") or {}))
