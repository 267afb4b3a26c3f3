"""One metered call of an LM: its budget, its attempts, its reply. `metered_lm` routes the calls here."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

import dspy
from dspy import LMError
from dspy.lm15 import Request

from rlm_dspy._dspy_compat import adapter_message_call
from rlm_dspy.budget.broken_stream import RecordedStream
from rlm_dspy.budget.lm_info import HistoryEntry, Outputs, filled_window, readable, usage_of
from rlm_dspy.budget.malformed_bodies import RequestUsage
from rlm_dspy.budget.max_reply_tokens import LMCall, reply_limit, room_for_reply
from rlm_dspy.budget.provider_errors import (
    add_wait,
    add_words,
    asked_pause,
    is_withheld,
    may_pass,
    refuses_streams,
    reply_in,
    why_not_sent,
)
from rlm_dspy.budget.provider_messages import rejects_system_role, with_cache_marks, without_system_role
from rlm_dspy.budget.window_errors import as_window_error, shorter_reply, sizes_of, window_error
from rlm_dspy.errors import LimitExceeded, ReplyCut, ReplyWithheld
from rlm_dspy.events import PauseEvent, emit
from rlm_dspy.usage import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.budget.ledger import Meter


_LONGEST_PAUSE_SECONDS = 60

request_under_way: ContextVar[MeteredCall | None] = ContextVar("request_under_way", default=None)
latest_entry: ContextVar[HistoryEntry] = ContextVar("latest_entry", default={})  # noqa: B039 (never changed)
"""The last history entry of DSPy in this context, outside any `metered` scope."""


class MeteredCall:
    """One call of an LM in a `metered` scope, with retries. Each attempt is one request.

    Args:
        lm: The LM.
        meters: The active meters, innermost scope first.
        call: The arguments of the call.

    Attributes:
        seconds: The pause before the next attempt; None after the answer.
        lm: The LM of the request: without retries, with replies that fit the limits.
        asked: The call of that LM.
        arguments: The same as arguments of `dspy.BaseLM.__call__`.
        entries: The history entries of DSPy during the call.
        keeps_history: Whether DSPy keeps these entries in the history of the LM.
        outputs: The unchanged outputs of the LM; None before the answer.
        reply: The result for the caller.
    """

    def __init__(self, lm: dspy.BaseLM, meters: tuple[Meter, ...], call: LMCall) -> None:
        if call.prompt is None and isinstance(call.options.get("request"), Request):
            call = LMCall(call.options.pop("request"), call.messages, call.options)
        outer = request_under_way.get()
        self._meters = meters
        self._raw = meters[0].raw or (outer is not None and outer._meters[0] is meters[0])  # noqa: SLF001 (its own)
        self._own_lm = lm
        self._own_call = call if self._raw else call.for_run(lm)
        self._failed: LMError | None = None
        self._repeats_made = 0
        self._is_shorter = False
        self._stream: RecordedStream | None = None
        self.seconds: float | None = 0.0
        self.keeps_history: bool = not dspy.settings.disable_history and (outer is None or outer.keeps_history)
        self.entries: list[HistoryEntry] = []
        self.outputs: Outputs = None
        self.reply: Outputs = None
        self._take_recorded()

    def _take_recorded(self) -> None:
        """Take the reply that this request got before the run was resumed, if it did: it is paid.

        Raises:
            ReplyCut: If it was truncated.
        """
        recorded = next((meter.ledger.recorded for meter in self._meters if meter.ledger.recorded), None)
        if recorded is None:
            return
        asked = self._own_call
        found = recorded.take(self._meters[0].role, self._own_lm.model, asked.prompt, asked.messages)
        if found is None:
            return
        for meter in self._meters:
            meter.take(found)
        used = {"prompt_tokens": found.used.input_tokens, "completion_tokens": found.used.output_tokens}
        entry = {"usage": used, "response": {"finish_reason": found.finish}}
        self.outputs, self.seconds = found.outputs, None
        self.reply = self.outputs if self._raw else readable(self.outputs, entry, self._own_lm)

    def begin_pause(self) -> float:
        """Return the pause before the next attempt, and tell the listeners of it."""
        pause = self.seconds or 0.0
        if pause and self._failed is not None:
            emit(PauseEvent(lm=self._own_lm, pause=pause, after=self._failed))
        return pause

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Send one request in this scope and set `outputs`; prepare a retry after a transient error.

        Raises:
            LimitExceeded: If the limits do not allow the request.
            ReplyCut: If its reply was truncated.
            dspy.LMError: If it failed, and a retry does not help.
        """
        try:
            self._cap()
            with self._held():
                yield
        except LimitExceeded as refusal:
            if self._failed is None:
                raise
            again = f"{refusal} It would have been retried after {self._failed}"
            raise type(refusal)(again, refusal.limit) from self._failed
        except Exception as error:  # noqa: BLE001  # the client of a custom LM may raise anything
            self._recover(error)
        else:
            self._meters[0].failure = None
            entry = self.entry(self.outputs)
            if not self._raw and (tokens := filled_window(self.outputs, entry)):
                self._recover(window_error(self.lm.model, tokens))
                return
            self.seconds = None
            self.reply = self.outputs if self._raw else readable(self.outputs, entry, self.lm)

    def entry(self, outputs: Outputs) -> HistoryEntry:
        """Return the history entry of the LM's outputs; an empty one if there is none."""
        for each in self.entries:
            if outputs is each.get("outputs") or outputs is each.get("response"):
                return each
        return {}

    def _cap(self) -> None:
        """Choose the LM and the call, with a reply that fits the limits."""
        ledger = self._meters[0].ledger
        if self._own_lm.model in ledger.without_system_role:
            self._own_call = without_system_role(self._own_call)
        self.lm, self.asked, changes = self._own_lm, self._own_call, {}
        if any(meter.ledger.bounded for meter in self._meters) or ledger.windows:
            room = room_for_reply(self.lm, self._meters)
            self.asked, changes = self.asked.within(room), reply_limit(self.lm, room)
        if self._meters[0].role.removeprefix("child.") == "act":
            self.asked = with_cache_marks(self.lm, self.asked)
        if self._repeats():
            changes["num_retries"] = 0
        if changes:
            self.lm = self.lm.copy(**changes)
            self.lm.history = self._own_lm.history  # where the caller expects it
        self.arguments = {"prompt": self.asked.prompt, "messages": self.asked.messages, **self.asked.options}

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the maximum usage of a request, and enter its actual usage."""
        holding: list[Meter] = []
        for meter in self._meters:
            try:
                limits = meter.ledger.limits if meter.ledger.bounded else None
                most = NOTHING if limits is None else self.asked.most(self.lm, limits)
                meter.hold(self, self.lm.model, most, self._meters[0].keeper)
            except LimitExceeded as refusal:
                meter.refusal = refusal
                for each in holding:
                    each.give_back(self)
                raise
            holding.append(meter)
        messages, usage, failed = self.asked.messages, RequestUsage(dspy.settings.usage_tracker), True
        token, self.outputs, self.entries = request_under_way.set(self), None, []
        is_whole = self._own_lm.model in self._meters[0].ledger.without_streams
        to = None if is_whole else dspy.settings.send_stream
        if self._stream is not None:
            self._stream.restart()
        self._stream = None if to is None else RecordedStream(to)
        try:
            with (
                dspy.context(usage_tracker=usage, disable_history=False, send_stream=self._stream),
                contextlib.nullcontext() if messages is None else adapter_message_call(self.lm, messages),
            ):
                yield
            failed = False
        finally:
            request_under_way.reset(token)
            self._settle(usage, failed=failed)

    def _settle(self, usage: RequestUsage, *, failed: bool) -> None:
        reported, entry = usage.get_total_tokens().get("", {}), self.entry(self.outputs)
        counts = {"calls": 1, "failures": int(failed), "cached_calls": int(not failed and not usage.is_reported)}
        for meter in self._meters:
            used = usage_of(reported, entry, meter.ledger.price(self._own_lm)).model_copy(update=counts)
            meter.outputs.append(self.outputs)
            meter.settle(self, self.lm.model, used)

    def _recover(self, error: Exception) -> None:
        """Prepare another attempt after an error.

        Raises:
            Exception: The error, if a retry does not help; as `dspy.ContextWindowExceededError` if it is one.
            ReplyCut: If it broke a stream that has sent text, or the reply is withheld.
        """
        add_words(error, self._own_lm)
        if self._stream is not None and self._stream.text and isinstance(error, LMError):
            if self._waits_after(error):
                return
            why = "broke off because the connection to its server failed"
            raise ReplyCut(why, self._stream.text, too_long=False) from error
        if is_withheld(error):
            raise ReplyWithheld("was withheld by the provider's content filter", "") from error
        if why := why_not_sent(error):
            raise ReplyCut(why, "", too_long=False) from error
        if rejected := reply_in(error):
            self.outputs, self.seconds = [rejected], None
            self.reply = self.outputs if self._raw else readable(self.outputs, {}, self.lm)
            return
        if rejects_system_role(error, self._own_call.messages):
            self._meters[0].ledger.without_system_role.add(self._own_lm.model)  # for the rest of the run
            self.seconds = 0.0
            return
        reason = as_window_error(error)
        if isinstance(reason, dspy.ContextWindowExceededError):
            sizes = sizes_of(reason)
            if sizes.window is not None:  # for the rest of the run
                self._meters[0].ledger.windows[self._own_lm.model] = sizes.window
            shorter = None if self._is_shorter else shorter_reply(self._own_lm, self._own_call, sizes)
            if shorter is None:
                raise reason from (error if reason is not error else error.__cause__)
            self._own_call, self._is_shorter, self.seconds = shorter, True, 0.0
            return
        self._ask_again(error)

    def _ask_again(self, error: Exception) -> None:
        """Prepare the same request after a pause, or without a stream; raise the error if it does not help."""
        model = self._own_lm.model
        without_streams = self._meters[0].ledger.without_streams
        if self._stream is not None and refuses_streams(error) and model not in without_streams:
            without_streams.add(model)  # for the rest of the run
            self.seconds = 0.0
            return
        if not self._waits_after(error):
            raise error

    def _waits_after(self, error: Exception) -> bool:
        """Prepare the same request after a pause if that may help; return whether it does."""
        transient = may_pass(error, is_stream=self._stream is not None)
        if not transient or not self._repeats() or self._repeats_made >= self._own_lm.num_retries:
            return False
        pause = asked_pause(error)
        if pause is None:
            pause = min(2**self._repeats_made, _LONGEST_PAUSE_SECONDS)
        elif pause > (most := self._longest_pause()):
            add_wait(error, pause, most)
            return False
        self.seconds = max(0.0, pause)
        self._failed, self._repeats_made = error, self._repeats_made + 1
        self._meters[0].failure = error
        return True

    def _longest_pause(self) -> float:
        """Return the most seconds to wait for a provider: a minute, or as long as `max_seconds` allows."""
        ledgers = [meter.ledger for meter in self._meters]
        left = [each.limits.max_seconds - each.seconds for each in ledgers if each.limits.max_seconds is not None]
        return max(_LONGEST_PAUSE_SECONDS, min(left, default=0.0))

    def _repeats(self) -> bool:
        """Whether failed requests are retried here, each counted, and not inside one DSPy call.

        Not if parts of the answer may have been paid for, and not for an LM with its own `forward`.
        """
        lm = self._own_lm
        if not isinstance(lm, dspy.LM) or not lm.num_retries or "forward" in vars(lm) or "aforward" in vars(lm):
            return False
        as_made = type(lm).forward is dspy.LM.forward and type(lm).aforward is dspy.LM.aforward
        return as_made and self._own_call.answers(lm) == 1
