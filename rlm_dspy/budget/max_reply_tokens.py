"""Computes how many tokens a reply may have, from the remaining budget and the model's context window."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from dspy.lm15 import Request

from rlm_dspy.budget.lm_info import REPLY_LIMITS, longest_reply, price_of
from rlm_dspy.budget.window_errors import sizes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dspy

    from rlm_dspy.budget.lm_call import LMCall
    from rlm_dspy.budget.metering import Meter

_SHORTEST_REPLY_TOKENS = 64
"""A request is not made with less room for its reply."""
_WINDOW_SHARE = 4
"""A reply takes one part in so many of the window, where nothing else is known of the messages before it."""
_LEAST_WINDOW_SHARE = 8
"""With less room for the reply, the messages are too long."""
_MARGIN = 16
_ALONE = 2
"""A reply that alone is under way may take one part in so many of what is left."""


def room_for_reply(lm: dspy.BaseLM, meters: Sequence[Meter]) -> float:
    """Return the most tokens that a reply may have; infinite without a limit."""
    return min(_affordable(lm, meters), _in_window(lm, meters))


def _affordable(lm: dspy.BaseLM, meters: Sequence[Meter]) -> float:
    """Return the tokens of a reply that the limits of the run leave; infinite if they limit none."""
    meter = next((meter for meter in meters if meter.ledger.bounded), None)
    if meter is None:
        return math.inf
    read = meters[0].input_tokens
    left = meter.ledger.left(meter.keeper)
    most = left.output_tokens
    price = price_of(lm, meter.ledger.limits.prices)
    if price is not None and price.most_written > 0:
        most = min(most, (left.cost - (read or 0) * price.most_read) / price.most_written)
    if math.isinf(most):
        return most
    most /= meter.ledger.limits.max_concurrency if read is None else _ALONE
    return max(_SHORTEST_REPLY_TOKENS, _power_of_two_below(most))


def _power_of_two_below(number: float) -> int:
    """Return a round number, so that the requests of like runs are alike, and found in DSPy's cache."""
    return 1 << (int(number).bit_length() - 1) if number >= 1 else 0


def _in_window(lm: dspy.BaseLM, meters: Sequence[Meter]) -> float:
    """Return the tokens of a reply that leave messages some room in a window that is known from refusals."""
    window = meters[0].ledger.windows.get(lm.model)
    wanted = max((lm.kwargs.get(name) or 0 for name in REPLY_LIMITS), default=0)
    return window // _WINDOW_SHARE if window is not None and wanted > window // 2 else math.inf


def reply_limit(lm: dspy.BaseLM, room: int) -> dict[str, int]:
    """Return the setting that limits an LM's replies to the room; empty if they are shorter anyway."""
    usual = longest_reply(lm)
    if usual is not None and usual <= room:
        return {}
    return {next((name for name in REPLY_LIMITS if name in lm.kwargs), REPLY_LIMITS[-1]): room}


def shorter_reply(lm: dspy.BaseLM, call: LMCall, refusal: dspy.ContextWindowExceededError) -> LMCall | None:
    """Return the call with a reply short enough to fit after its messages; None if none fits.

    Many servers count the longest reply that a request allows as a part of it.

    Args:
        lm: The LM that refused.
        call: What it was called with.
        refusal: What tells the window.
    """
    sizes = sizes_of(refusal)
    limits = ((name, {**lm.kwargs, **call.options}.get(name)) for name in REPLY_LIMITS)
    name, wanted = next(((name, limit) for name, limit in limits if limit), ("", 0))
    if not name or sizes.window is None or isinstance(call.prompt, Request):
        return None
    guess = sizes.window // _WINDOW_SHARE
    room = guess if sizes.read is None else sizes.window - sizes.read - _MARGIN
    fits = min(wanted, sizes.window // _LEAST_WINDOW_SHARE) <= room < wanted
    return replace(call, options={**call.options, name: room}) if fits else None
