"""Reserves budget for the last turn, decides when it comes, and tells the model what is left."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from rlm_dspy.budget.lm_info import check_price, longest_reply, tokens_at_most
from rlm_dspy.errors import LimitExceeded
from rlm_dspy.text import counted
from rlm_dspy.usage import NOTHING, Amount

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dspy

    from rlm_dspy.budget.ledger import Ledger, Meter
    from rlm_dspy.limits import Limits
    from rlm_dspy.trajectory import Step

TRANSCRIPT_CHARS = 12_000
"""Maximum length of a session in the extraction call."""
_REPLY_TOKENS = 1_024
"""Tokens reserved for each of the last two replies, if the limits allow it."""
_SHARE = 8
"""At most 1/_SHARE of a limit is reserved for one reply."""
_TURNS_COUNTED_DOWN = 3
_NO_SECONDS = 0.1
_CALLS_KEPT = 2
"""Calls reserved for a child: its last turn and the extraction."""
_LEAST_SECONDS_SHARE, _MOST_SECONDS_SHARE = 0.1, 0.5


class Budget:
    """Tracks what one run may still do. Each child has its own, with the same ledger.

    Attributes:
        limit: The limit that makes the next turn the last; None while there may be more.
        turns: The number of ended turns.
        next_tokens: An upper bound of the tokens of the next turn's messages.
        extraction_tokens: An upper bound of the tokens of the extraction's messages.

    Args:
        ledger: What is spent.
        limits: The limits of the run's turns and failures; the ledger bounds everything else.
        lm: The LM of the turns.
        tokens: An upper bound of the tokens of the first turn's messages.
        child: Whether the run is a child, whose turns are model calls of its parent's code.

    Raises:
        UnknownPrice: If the cost is limited and the price of the LM is not known.
    """

    def __init__(
        self, ledger: Ledger, limits: Limits, lm: dspy.BaseLM, tokens: int, *, child: bool = False
    ) -> None:
        self.ledger = ledger
        self._limits = limits
        self.child = child
        self.limit: str | None = None
        self.next_tokens = tokens
        self.extraction_tokens = tokens + TRANSCRIPT_CHARS // 2
        self._lm = lm
        self.turns = 0
        self._failures = self._repetitions = 0
        self._repeats_code = False
        self._longest_reply_seconds = 0.0
        self._waited = ""
        self._keep()
        self._decide()

    @property
    def reason(self) -> str:
        """Why there are no more turns, as text."""
        if self.limit == "max_repetitions" and not self._repeats_code:
            return "the model replied repeatedly without code"
        return _REASONS[self.limit] if self.limit else "the conversation does not fit the context window"

    @property
    def keeper(self) -> Budget | None:
        """The run that may use the reserve for the last turn: this one, if the next turn is the last."""
        return self if self.limit else None

    def out_of_time(self) -> LimitExceeded:
        """Return the message for code that `max_seconds` or `max_cell_seconds` stops."""
        limits = self.ledger.limits
        if limits.max_cell_seconds is None or self._seconds_left() <= _NO_SECONDS:
            return LimitExceeded(f"max_seconds={limits.max_seconds or 0:g} is almost reached.", "max_seconds")
        return LimitExceeded(
            f"The code ran longer than max_cell_seconds={limits.max_cell_seconds:g}.", "max_cell_seconds"
        )

    def replied(self, read_tokens: int, seconds: float) -> None:
        """Record the tokens and time of a turn's reply.

        Args:
            read_tokens: An upper bound of the tokens of its messages.
            seconds: Wall-clock time until the reply.
        """
        self.next_tokens = max(self.next_tokens, read_tokens)
        self._longest_reply_seconds = max(self._longest_reply_seconds, seconds)

    def ended(self, step: Step, advice: str = "") -> Step:
        """Return the step of an ended turn, with the notice of what is left.

        Args:
            step: The turn.
            advice: Further advice to the model, unless this was the last turn.
        """
        was_last = self.limit is not None
        self.turns += 1
        self._failures = self._failures + 1 if step.failed else 0
        self._repetitions = self._repetitions + 1 if step.repeats else 0
        if step.repeats:
            self._repeats_code = bool(step.code.strip())
        messages = [{"content": step.reasoning + step.code}, {"content": step.output + advice}]
        self.next_tokens += tokens_at_most(None, messages)
        self._keep(turns=0 if was_last else 1)
        if was_last:
            return step
        self._decide()
        return step.model_copy(update={"notice": "\n".join(filter(None, [advice, self._notice()]))})

    def close(self) -> None:
        """Release the reservations."""
        self.ledger.release(self)

    @property
    def seconds_kept(self) -> float:
        """The part of `max_seconds` that is reserved for the last turn and the extraction."""
        most = self.ledger.limits.max_seconds or 0.0
        wanted = max(_LEAST_SECONDS_SHARE * most, 3 * self._longest_reply_seconds, 1.0)
        return min(wanted, _MOST_SECONDS_SHARE * most)

    def seconds_for_code(self) -> float | None:
        """Return the seconds that the code of this turn may run; None without a limit."""
        most = min(self._seconds_left(), self.ledger.limits.max_cell_seconds or math.inf)
        return None if math.isinf(most) else max(0.0, most)

    def seconds_for_reply(self) -> float | None:
        """Return the seconds that the reply of this turn may take; None without a limit."""
        left = self._seconds_left()
        return None if math.isinf(left) else max(0.0, left)

    def seconds_left(self) -> float | None:
        """Return what is left of `max_seconds`; None if there is no limit."""
        most = self.ledger.limits.max_seconds
        return None if most is None else max(0.0, most - self.ledger.seconds)

    @contextlib.contextmanager
    def in_time(self, meter: Meter) -> Iterator[None]:
        """Convert a reply's time-out to the limit that caused it, and say what the time went by with."""
        try:
            yield
        except TimeoutError as error:
            if self.seconds_for_reply() is None:
                raise
            if meter.failure is not None:
                said = str(meter.failure).partition("\n")[0]  # DSPy adds lines of advice
                self._waited = f" The last request failed: {said}"
            waited = self._waited or " The model had not replied."
            refusal = self.out_of_time()
            raise LimitExceeded(f"{refusal}{waited}", refusal.limit) from error

    def _seconds_left(self) -> float:
        """Return the remaining seconds without the reserve for later turns; infinite without a limit."""
        most = self.ledger.limits.max_seconds
        if most is None:
            return math.inf
        left = most - self.ledger.seconds
        return left / 2 if self.limit else left - self.seconds_kept

    def _keep(self, turns: int = 1) -> None:
        """Reserve what the last turn, unless it is over, and the extraction need."""
        if not self.ledger.bounded:
            return
        limits, lm = self.ledger.limits, self._lm
        price = check_price(lm, limits) or self.ledger.price(lm)
        reply = min(_REPLY_TOKENS, longest_reply(lm) or _REPLY_TOKENS)
        if limits.max_output_tokens is not None:
            reply = min(reply, limits.max_output_tokens // _SHARE)
        if limits.max_cost is not None and price is not None and price.most_written:
            reply = min(reply, int(limits.max_cost / _SHARE / price.most_written))

        def amount(read: float) -> Amount:
            return Amount(read, reply, price.at_most(read, reply) if price is not None else 0.0)

        growth = reply + limits.max_output_chars // 2
        last_turn = amount(self.next_tokens + growth) if turns else NOTHING
        self.ledger.keep(self, last_turn + amount(self.extraction_tokens))

    def _decide(self) -> None:
        """Determine whether a limit makes the next turn the last."""
        reached = {
            "max_iters": self.turns + 1 >= self._limits.max_iters,
            "max_failures": self._failures >= (self._limits.max_failures or math.inf),
            "max_repetitions": self._repetitions >= (self._limits.max_repetitions or math.inf),
            "max_seconds": self._seconds_left() <= 0,
            "max_llm_calls": self.child and self.ledger.calls_left <= _CALLS_KEPT,
            **self._short_of(),
        }
        self.limit = self.limit or next((name for name, is_reached in reached.items() if is_reached), None)

    def _short_of(self) -> dict[str, bool]:
        """Return for each limit on tokens and cost whether another turn leaves too little for the last one."""
        if not self.ledger.bounded:
            return {}
        left, limits = self.ledger.left(), self.ledger.limits
        price = check_price(self._lm, limits) or self.ledger.price(self._lm)
        reply = min(_REPLY_TOKENS // 4, longest_reply(self._lm) or _REPLY_TOKENS)
        return {
            "max_input_tokens": left.input_tokens < self.next_tokens,
            "max_output_tokens": left.output_tokens < reply,
            "max_cost": price is not None and left.cost < price.at_most(self.next_tokens, reply),
        }

    def _notice(self) -> str:
        turns = self._limits.max_iters - self.turns
        if self.limit == "max_iters":
            return "This is the last turn. Call SUBMIT now with your best answer."
        if self.limit:
            return f"This is the last turn: {_REASONS[self.limit]}. Call SUBMIT now with your best answer."
        left = self._left()
        if left:
            return f"Left: {', '.join([counted(turns, 'turn'), *left])}."
        return f"{turns} turns are left." if turns <= _TURNS_COUNTED_DOWN else ""

    def _left(self) -> list[str]:
        """Return as text what is left of the set limits, and of sub-calls after the first one."""
        limits, left = self.ledger.limits, self.ledger.left()
        parts = []
        if self.ledger.calls_made or self.child:
            parts.append(counted(self.ledger.calls_left, "model call"))
        if limits.max_input_tokens is not None:
            parts.append(f"{max(0, left.input_tokens):,} input tokens")
        if limits.max_output_tokens is not None:
            parts.append(f"{max(0, left.output_tokens):,} output tokens")
        if limits.max_cost is not None:
            parts.append(f"${max(0.0, left.cost):.2g}")
        if limits.max_seconds is not None:
            parts.append(f"{max(0.0, limits.max_seconds - self.seconds_kept - self.ledger.seconds):.0f} s")
        return parts


_REASONS = {
    "max_iters": "no turns are left",
    "max_failures": "too many turns failed in a row",
    "max_repetitions": "the same code was run repeatedly",
    "max_seconds": "time is almost up",
    "max_llm_calls": "no model calls are left",
    "max_input_tokens": "the input tokens are almost used up",
    "max_output_tokens": "the output tokens are almost used up",
    "max_cost": "the cost limit is almost reached",
}
