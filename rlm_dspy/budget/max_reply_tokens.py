"""Caps the reply of a request by the remaining budget and the model's window, and bounds its usage."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from dspy.lm15 import Request

from rlm_dspy.budget.lm_info import REPLY_LIMITS, check_price, longest_reply, tokens_at_most
from rlm_dspy.text import all_sendable
from rlm_dspy.usage import Amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dspy

    from rlm_dspy.budget.ledger import Meter
    from rlm_dspy.limits import Limits

_SHORTEST_REPLY_TOKENS = 64
"""Minimum room for a reply; a request with less is not sent."""
_LONGEST_REPLY_UNKNOWN = 32_768
_WINDOW_SHARE = 4
"""Share of the window for a reply (1/n), if the length of the messages is unknown."""
_ALONE = 2
"""Share of the rest (1/n) for the only running reply."""

Prompt: TypeAlias = str | Request | None
Messages: TypeAlias = list[dict[str, Any]] | None


@dataclass(frozen=True)
class LMCall:
    """The arguments of an LM call.

    Attributes:
        prompt: A text or a whole request; None with `messages`.
        messages: The messages from an adapter; None with `prompt`.
        options: The settings of this call, which override those of the LM.
    """

    prompt: Prompt
    messages: Messages
    options: dict[str, Any]

    def answers(self, lm: dspy.BaseLM) -> int:
        """Return the number of requested answers."""
        number: int = self.options.get("n") or lm.kwargs.get("n") or 1
        return number

    def for_run(self, lm: dspy.BaseLM) -> LMCall:
        """Return the call in valid Unicode, and for one answer unless it asks for more itself.

        DSPy rejects lone surrogates. A run reads one answer: those of the LM's own `n` would be paid for and lost.
        The list of messages stays the same object, by which DSPy recognizes an adapter's messages.
        """
        asks = isinstance(self.prompt, Request) or "n" in self.options
        several = not asks and (lm.kwargs.get("n") or 1) > 1
        call = replace(self, options={**self.options, "n": 1}) if several else self
        if _is_unicode(call):
            return call
        if isinstance(self.messages, list):
            self.messages[:] = all_sendable(self.messages)
        return LMCall(all_sendable(self.prompt), self.messages, all_sendable(call.options))

    def within(self, room: float) -> LMCall:
        """Return the call with its reply limited to `room` tokens."""
        if math.isinf(room):
            return self
        if isinstance(self.prompt, Request):
            most = int(min(self.prompt.config.max_tokens or room, room))
            return replace(self, prompt=replace(self.prompt, config=replace(self.prompt.config, max_tokens=most)))
        limits = {name: min(n, room) for name in REPLY_LIMITS if (n := self.options.get(name))}
        return replace(self, options={**self.options, **limits})

    def most(self, lm: dspy.BaseLM, limits: Limits) -> Amount:
        """Return the maximum usage of the call.

        Raises:
            UnknownPrice: If the cost is limited and the price of the LM is not known.
        """
        reply_limits = {**lm.kwargs, **self.options}
        limit = next((reply_limits[name] for name in REPLY_LIMITS if reply_limits.get(name)), None)
        limit = self.prompt.config.max_tokens if isinstance(self.prompt, Request) else limit
        written = (limit or longest_reply(lm) or _LONGEST_REPLY_UNKNOWN) * self.answers(lm)
        read = tokens_at_most(self.prompt, self.messages) * self.answers(lm)
        price = check_price(lm, limits)
        return Amount(read, written, price.at_most(read, written) if price is not None else 0.0)


def _is_unicode(call: LMCall) -> bool:
    """Whether no text of a call has a lone surrogate."""
    try:
        json.dumps(vars(call), ensure_ascii=False, skipkeys=True, default=id).encode()
    except ValueError:
        return False
    return True


def room_for_reply(lm: dspy.BaseLM, meters: Sequence[Meter]) -> float:
    """Return the maximum tokens of a reply; infinite without a limit."""
    return min(_affordable(lm, meters), _in_window(lm, meters))


def _affordable(lm: dspy.BaseLM, meters: Sequence[Meter]) -> float:
    """Return the tokens that the run's limits leave for a reply; infinite without a limit."""
    meter = next((meter for meter in meters if meter.ledger.bounded), None)
    if meter is None:
        return math.inf
    read = meters[0].input_tokens
    left = meter.ledger.left(meter.keeper)
    most = left.output_tokens
    price = meter.ledger.price(lm)
    if price is not None and price.most_written > 0:
        most = min(most, (left.cost - (read or 0) * price.most_read) / price.most_written)
    if math.isinf(most):
        return most
    most /= meter.ledger.limits.max_concurrency if read is None else _ALONE
    return max(_SHORTEST_REPLY_TOKENS, _power_of_two_below(most))


def _power_of_two_below(number: float) -> int:
    """Round the number, so that similar runs send equal requests, which DSPy's cache finds."""
    return 1 << (int(number).bit_length() - 1) if number >= 1 else 0


def _in_window(lm: dspy.BaseLM, meters: Sequence[Meter]) -> float:
    """Return the reply tokens that leave room for messages in a window known from refusals."""
    window = meters[0].ledger.windows.get(lm.model)
    wanted = max((lm.kwargs.get(name) or 0 for name in REPLY_LIMITS), default=0)
    return window // _WINDOW_SHARE if window is not None and wanted > window // 2 else math.inf


def reply_limit(lm: dspy.BaseLM, room: float) -> dict[str, int]:
    """Return the setting that limits an LM's replies to `room`; empty if they are shorter anyway."""
    usual = longest_reply(lm)
    if math.isinf(room) or (usual is not None and usual <= room):
        return {}
    return {next((name for name in REPLY_LIMITS if name in lm.kwargs), REPLY_LIMITS[-1]): int(room)}
