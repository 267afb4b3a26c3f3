"""Intercepts every LM call of a run: reserves budget, sends the request, records usage, retries and rejects.

DSPy has no hook that can refuse a call: it swallows exceptions of callbacks. A proxy of the configured LM misses
the LMs of predictors, adapters (`TwoStepAdapter`), other LMs and validators. So `metered` wraps
`dspy.BaseLM.__call__` and `acall`, which every call of every LM passes. Outside a `metered` scope, calls are
unchanged. Inside, a `MeteredCall` makes the call:

1. It lowers `max_tokens` to what the limits allow.
2. Each active meter holds the maximum usage of the request, or it raises `LimitExceeded`.
3. It sends one request, with DSPy's callbacks, history and usage tracker as usual.
4. It enters the usage of the request.
5. After a transient error it repeats this, up to `lm.num_retries` times: DSPy itself would retry inside one call,
   unseen.

Outputs are returned without the model's thinking, and a truncated reply raises `ReplyCut`. So does a stream that
breaks after it has sent text, if its repetitions break too: its listeners hear each as a reply of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.budget.ledger import Meter
from rlm_dspy.budget.malformed_bodies import accept_malformed_bodies
from rlm_dspy.budget.max_reply_tokens import LMCall, Messages, Prompt
from rlm_dspy.budget.metered_call import MeteredCall, latest_entry, request_under_way
from rlm_dspy.budget.provider_errors import (
    keep_rejected_replies,
)
from rlm_dspy.concurrency.wait_scope import pause
from rlm_dspy.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.budget.lm_info import HistoryEntry
    from rlm_dspy.usage import Usage


@contextlib.contextmanager
def metered(
    ledger: Ledger,
    role: str,
    *,
    keeper: Hashable = None,
    counted: bool = False,
    mirror: list[Usage] | None = None,
    input_tokens: float | None = None,
    raw: bool = False,
) -> Iterator[Meter]:
    """Record every LM call of this scope in `ledger` under `role`, and reject what its limits do not allow.

    An inner scope of the same ledger replaces the outer one: no call is entered twice.

    Args:
        ledger: See `Meter`, as for the next three, and the last two.
        role: The role of the calls.
        keeper: The run whose last turn this is.
        counted: Whether each request takes one of `max_llm_calls`.
        mirror: A list that receives the usage of each call, also in inner scopes that replace this one.
        input_tokens: The most tokens that the request reads, if that is known and no other is under way.
        raw: Whether replies are returned as the LM gives them.

    Raises:
        LimitExceeded: If the limits refused a call, even if its caller continued without it.
    """
    intercept_lm_calls()
    mirrors, others = [] if mirror is None else [mirror], []
    for outer in meters_in_force():
        if outer.ledger is ledger:
            mirrors += outer.mirrors
        else:
            others.append(outer)
    meter = Meter(ledger, role, keeper, counted, tuple(mirrors), input_tokens, raw)
    try:
        with dspy.context(**{METERS: (meter, *others)}):
            yield meter
    except (TimeoutError, LimitExceeded) as error:
        if isinstance(error.__cause__ or error, TimeoutError):
            meter.give_up()
        raise
    except Exception:
        if meter.refusal is None:
            raise
    if meter.refusal is not None:
        raise meter.refusal


METERS = "rlm_dspy_meters"
"""The key of `dspy.settings` that holds the active meters: it reaches threads of DSPy."""


def meters_in_force() -> tuple[Meter, ...]:
    """Return the innermost active meter of each ledger, innermost scope first."""
    return dspy.settings.get(METERS) or ()


def role() -> str:
    """Return the role of the innermost scope; empty outside of any."""
    meters = meters_in_force()
    return meters[0].role if meters else ""


_lock = threading.Lock()
_is_patched = False


def intercept_lm_calls() -> None:
    """Patch `dspy.BaseLM`, once per process, so that every LM call passes through this module; see the module."""
    global _is_patched  # noqa: PLW0603  # one for each process
    if _is_patched:
        return
    with _lock:
        if not _is_patched:
            accept_malformed_bodies()
            keep_rejected_replies()
            _meter_calls(dspy.BaseLM)
            _note_entries(dspy.BaseLM)
            _is_patched = True


def _meter_calls(kind: type[dspy.BaseLM]) -> None:
    call, acall = kind.__call__, kind.acall

    @functools.wraps(call)
    def called(self: dspy.BaseLM, prompt: Prompt = None, *, messages: Messages = None, **options: Any) -> Any:
        if not (meters := meters_in_force()):
            return call(self, prompt, messages=messages, **options)
        made = MeteredCall(self, meters, LMCall(prompt, messages, options))
        while made.seconds is not None:
            if seconds := made.begin_pause():
                pause(seconds)
            with made.attempt():
                made.outputs = call(made.lm, **made.arguments)
        return made.reply

    @functools.wraps(acall)
    async def awaited(
        self: dspy.BaseLM, prompt: Prompt = None, *, messages: Messages = None, **options: Any
    ) -> Any:
        if not (meters := meters_in_force()):
            return await acall(self, prompt, messages=messages, **options)
        made = MeteredCall(self, meters, LMCall(prompt, messages, options))
        while made.seconds is not None:
            if seconds := made.begin_pause():
                await asyncio.sleep(seconds)
            with made.attempt():
                made.outputs = await acall(made.lm, **made.arguments)
        return made.reply

    kind.__call__, kind.acall = called, awaited


def _note_entries(kind: type[dspy.BaseLM]) -> None:
    update_history = kind.update_history

    @functools.wraps(update_history)
    def noted(self: dspy.BaseLM, entry: HistoryEntry) -> None:
        request = request_under_way.get()
        if request is None:
            latest_entry.set(entry)
        else:
            request.entries.append(entry)
        if request is None or request.keeps_history:
            update_history(self, entry)

    kind.update_history = noted
