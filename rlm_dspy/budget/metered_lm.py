"""Has LMs asked as the limits of a `metered` scope need it: for short enough replies, and attempt by attempt."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import math
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.callback import with_callbacks
from dspy.utils.exceptions import ContextWindowExceededError, LMError, LMProviderError, is_retryable_lm_error

from rlm_dspy.budget.lm_info import REPLY_LIMITS, finish_reasons, longest_reply, price_of, text_of
from rlm_dspy.budget.metering import Meter, Refused, are_meters, aside, heard, ledger_in_force, narrowest
from rlm_dspy.budget.refusals import as_window_error, sizes_of, window_errors
from rlm_dspy.budget.server_usage import accept_any_usage
from rlm_dspy.concurrency.timeouts import given_up
from rlm_dspy.errors import LimitExceeded, ReplyCut
from rlm_dspy.replies.thinking import split_thinking
from rlm_dspy.text import mended

if TYPE_CHECKING:
    from collections.abc import Collection


if TYPE_CHECKING:
    from collections.abc import Iterator

_SHORTEST_REPLY_TOKENS = 64
"""A request is not made with less room for its reply."""
_REPLY_SHARE = 4
"""A reply takes one part in so many of the window, where nothing else is known of the messages before it."""
_LEAST_REPLY_SHARE = 8
"""With less room for the reply, the messages are too long."""
_REPLY_MARGIN = 16
_ALONE = 2
"""A reply that alone is under way may take one part in so many of what is left."""
_TELLING = with_callbacks(lambda _: None).__code__
"""Of the functions that tell callbacks."""
_known_tokens: ContextVar[float | None] = ContextVar("_known_tokens", default=None)
_CHAT = dspy.ChatAdapter()
"""What DSPy speaks through where no adapter is set."""


@contextlib.contextmanager
def fitting(input_tokens: float | None = None, *, module: dspy.Module | None = None) -> Iterator[None]:
    """Have whatever LM is asked in this scope give way to one that `asked` returns, in one request.

    That is the LM in force, and those of predictors' own, which are known only when the adapter asks them. A
    request that the limits do not allow at all is refused here.

    Args:
        input_tokens: How many tokens the request will read at most, if that is known and no other is under way:
            the reply may then take half of what is left beyond them, else a fair part of it.
        module: What alone asks in this scope, if that is known. If it asks through the adapter in force, the
            meters need not hear of anything before.

    Raises:
        LimitExceeded: If the limits do not allow a call.
    """
    token = _known_tokens.set(input_tokens)
    adapter = asking(dspy.settings.adapter or _CHAT)
    scope = aside() if isinstance(adapter, _Asking) and _asks_by_adapter(module) else contextlib.nullcontext()
    try:
        with scope, dspy.context(lm=asked(dspy.settings.lm), adapter=adapter):
            yield
    except Refused as refused:
        for callback in dspy.settings.callbacks:
            if isinstance(callback, Meter):
                callback.forget(refused.call_id)
        raise refused.why from refused.__cause__
    finally:
        _known_tokens.reset(token)


def _asks_by_adapter(module: Any) -> bool:
    """Whether a module is a predictor of DSPy's or ours, which asks no LM but through an adapter."""
    if not isinstance(module, dspy.Predict | dspy.ChainOfThought):
        return False
    ours = type(module).__module__.partition(".")[0] in ("dspy", "rlm_dspy")
    as_made = not {"forward", "aforward"} & vars(module).keys()
    if not ours or not as_made or module.callbacks:
        return False
    return isinstance(module, dspy.Predict) or _asks_by_adapter(module.predict)


def asked(lm: Any) -> Any:
    """Return what is asked in place of an LM.

    Where the limits leave less than the LM's longest reply could take, that is a copy with lower `max_tokens` that
    shares its history. Its repeated requests are told apart (`attempt_by_attempt`).
    """
    return attempt_by_attempt(_fitted(lm))


def _fitted(lm: Any) -> Any:
    if not isinstance(lm, dspy.BaseLM):
        return lm
    room = _room_for_reply(lm)
    usual = longest_reply(lm)
    if math.isinf(room) or (usual is not None and usual <= room):
        return lm
    name = next((name for name in REPLY_LIMITS if name in lm.kwargs), REPLY_LIMITS[-1])
    shorter = lm.copy(**{name: room})
    shorter.history = lm.history  # where the caller looks for it
    return shorter


def _room_for_reply(lm: Any) -> float:
    """Return the tokens of the longest reply that there is room for; infinite if that is not limited."""
    return min(_affordable(lm), _behind_messages(lm)) if isinstance(lm, dspy.BaseLM) else math.inf


def _behind_messages(lm: dspy.BaseLM) -> float:
    """Return the tokens of a reply that leave messages some room in a window that is known from refusals."""
    ledger = ledger_in_force()
    window = ledger.windows.get(lm.model) if ledger is not None else None
    wanted = max((lm.kwargs.get(name) or 0 for name in REPLY_LIMITS), default=0)
    return window // _REPLY_SHARE if window is not None and wanted > window // 2 else math.inf


def _affordable(lm: dspy.BaseLM) -> float:
    """Return the tokens of a reply that the limits of the run leave; infinite if they limit none."""
    meter = narrowest()
    if meter is None:
        return math.inf
    read = _known_tokens.get()
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


def asking(adapter: Any) -> Any:
    """Return an adapter that stands for this one, shares all that it holds, and asks LMs as `asked` has it."""
    if not isinstance(adapter, dspy.Adapter) or isinstance(adapter, _Asking):
        return adapter
    again = object.__new__(_asking_kind(type(adapter)))  # type: ignore[arg-type]
    again.__dict__ = adapter.__dict__
    return again


def kind_of(adapter: Any) -> Any:
    """Return the class of an adapter, of one that `asking` has returned that of what it stands for."""
    return getattr(type(adapter), "stands_for", type(adapter))


class _Asking(dspy.Adapter):
    stands_for: type[dspy.Adapter]

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        with heard(), answering(signature.output_fields), _noting_windows(lm):
            options = _within_room(lm, lm_kwargs)
            try:
                return super().__call__(asked(lm), options, signature, demos, inputs)
            except dspy.ContextWindowExceededError as refusal:
                shorter = _with_shorter_reply(lm, options, refusal)
                if shorter is None:
                    raise
                _note_window(lm, refusal)
            return super().__call__(asked(lm), shorter, signature, demos, inputs)

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        with heard(), answering(signature.output_fields), _noting_windows(lm):
            options = _within_room(lm, lm_kwargs)
            try:
                return await super().acall(asked(lm), options, signature, demos, inputs)
            except dspy.ContextWindowExceededError as refusal:
                shorter = _with_shorter_reply(lm, options, refusal)
                if shorter is None:
                    raise
                _note_window(lm, refusal)
            return await super().acall(asked(lm), shorter, signature, demos, inputs)


@contextlib.contextmanager
def _noting_windows(lm: Any) -> Iterator[None]:
    try:
        yield
    except dspy.ContextWindowExceededError as refusal:
        _note_window(lm, refusal)
        raise


def _note_window(lm: Any, refusal: dspy.ContextWindowExceededError) -> None:
    """Note the window that the refusal of a request tells of, for the rest of the run."""
    window, ledger = sizes_of(refusal).window, ledger_in_force()
    if window is not None and ledger is not None:
        ledger.windows[lm.model] = window


def _within_room(lm: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a request, with no longer reply than there is room for."""
    room = _room_for_reply(lm)
    return {name: min(n, room) if n and name in REPLY_LIMITS else n for name, n in options.items()}


def _with_shorter_reply(
    lm: Any, options: dict[str, Any], refusal: dspy.ContextWindowExceededError
) -> dict[str, Any] | None:
    """Return the options of a request that asks for a reply which fits behind messages that do; None if none does.

    Many servers count the longest reply that a request allows as a part of it.
    """
    sizes = sizes_of(refusal)
    limits = ((name, {**lm.kwargs, **options}.get(name)) for name in REPLY_LIMITS)
    name, wanted = next(((name, limit) for name, limit in limits if limit), ("", 0))
    if not name or sizes.window is None:
        return None
    guess = sizes.window // _REPLY_SHARE
    room = guess if sizes.read is None else sizes.window - sizes.read - _REPLY_MARGIN
    fits = min(wanted, sizes.window // _LEAST_REPLY_SHARE) <= room < wanted
    return {**options, name: room} if fits else None


@functools.lru_cache(maxsize=64)  # `dspy.Refine` makes a class for each attempt
def _asking_kind(kind: type[dspy.Adapter]) -> type[dspy.Adapter]:
    told_as = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "stands_for": kind}
    if kind in (dspy.ChatAdapter, dspy.JSONAdapter):
        told_as["format_field_structure"] = _told_once(kind)
    made: Any = type(kind.__name__, (_Asking, kind), told_as)
    made.format, made.parse = _told_to_others(kind.format), _told_to_others(kind.parse)
    found: type[dspy.Adapter] = made
    return found


def _told_to_others(method: Any) -> Any:
    """Return a method of which DSPy tells its callbacks, unless they are meters alone."""
    plain = method
    while getattr(plain, "__code__", None) is _TELLING:
        plain = plain.__wrapped__

    @functools.wraps(method)
    def call(self: dspy.Adapter, *args: Any, **kwargs: Any) -> Any:
        nobody = are_meters(dspy.settings.callbacks) and not self.callbacks
        return (plain if nobody else method)(self, *args, **kwargs)

    return call


def _told_once(kind: type[dspy.Adapter]) -> Any:
    """Return `format_field_structure` of a kind of adapters that makes a signature's JSON schemas only once."""

    @functools.lru_cache(maxsize=64)
    def told(signature: type[dspy.Signature]) -> str:
        return str(kind().format_field_structure(signature))

    return staticmethod(told)


def _as_inherited(kind: type[dspy.Adapter]) -> None:
    """Take back what DSPy does to each class of adapters: it would tell of `format` and `parse` twice."""
    del kind.format, kind.parse


_as_inherited(_Asking)


_LONGEST_PAUSE_SECONDS = 60


_OK = 200


_CUT = frozenset(
    {"length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length", "token_limit"}
    | {"model_context_window_exceeded", "content_filter"}
)
"""Why a reply may end before its end, as providers name it, in lower case."""


_fields: ContextVar[Collection[str]] = ContextVar("_fields", default=())


@contextlib.contextmanager
def answering(fields: Collection[str]) -> Iterator[None]:
    """Name the fields of the answers in this scope: tags with their names are no thinking."""
    token = _fields.set(fields)
    try:
        yield
    finally:
        _fields.reset(token)


def attempt_by_attempt(lm: Any) -> Any:
    """Return an LM that stands for this one, and shares all that it holds.

    It sends texts without halves of surrogate pairs, which DSPy refuses. It returns answers without the thinking
    before them, and raises `ReplyCut` for one that was cut short; history, callbacks and DSPy's cache have all.

    DSPy repeats a failed request up to `num_retries` times inside one call of the LM, and tells of none but the
    last. What is returned here repeats after the same errors and pauses (dspy 3.4), but by calling itself: each
    request is held, entered and traced on its own, and refused when the limits allow no more. It repeats after a
    reply that is no JSON, too. An LM whose `forward` or `aforward` is not `dspy.LM`'s asks and repeats in its own
    way.
    """
    if not isinstance(lm, dspy.BaseLM) or isinstance(lm, _Reading):
        return lm
    accept_any_usage()
    return _standing_for(lm, _AttemptByAttempt if _can_be_split(lm) else _Reading)


def _can_be_split(lm: dspy.BaseLM) -> bool:
    """Whether DSPy would repeat an LM's requests inside one call."""
    if not isinstance(lm, dspy.LM) or not lm.num_retries or "forward" in vars(lm) or "aforward" in vars(lm):
        return False
    return type(lm).forward is dspy.LM.forward and type(lm).aforward is dspy.LM.aforward


def _standing_for(lm: dspy.BaseLM, way: type[_Reading]) -> dspy.BaseLM:
    again: dspy.BaseLM = object.__new__(_shown(type(lm), way))  # type: ignore[arg-type]
    again.__dict__ = lm.__dict__
    return again


@functools.cache
def _shown(kind: type[dspy.BaseLM], way: type[_Reading]) -> type[dspy.BaseLM]:
    told_as = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "stands_for": kind}
    return type(kind.__name__, (way, kind), told_as)


class _Reading(dspy.BaseLM):
    stands_for: type[dspy.BaseLM]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _sendable(args, kwargs)
        with _noted() as entries, window_errors():
            outputs = self._ask(*args, **kwargs)
        return self._read(outputs, entries)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _sendable(args, kwargs)
        with _noted() as entries, window_errors():
            outputs = await self._aask(*args, **kwargs)
        return self._read(outputs, entries)

    def _ask(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    async def _aask(self, *args: Any, **kwargs: Any) -> Any:
        return await super().acall(*args, **kwargs)

    def update_history(self, entry: dict[str, Any]) -> None:
        """Note what DSPy tells of a request, and keep it if the caller keeps a history."""
        noted = _entries.get()
        if noted is not None:
            noted.entries.append(entry)
        if noted is None or noted.is_kept:
            super().update_history(entry)

    def _read(self, outputs: Any, noted: _Noted) -> Any:
        """Return outputs without the thinking in their texts.

        Raises:
            ReplyCut: If one of them was cut short.
        """
        if not isinstance(outputs, list):  # the response of an explicit request
            return outputs
        outputs = [{**o, "text": _answer(o.get("text"))} if isinstance(o, dict) else _answer(o) for o in outputs]
        for entry in noted.entries:
            if reason := next((reason for reason in finish_reasons(entry["response"]) if reason in _CUT), None):
                raise _cut(self, reason, entry, outputs)
        return outputs

    def _plain(self) -> dspy.BaseLM:
        plain: dspy.BaseLM = object.__new__(self.stands_for)
        plain.__dict__ = self.__dict__
        return plain

    def __copy__(self) -> dspy.BaseLM:
        copied: dspy.BaseLM = attempt_by_attempt(copy.copy(self._plain()))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be copied and pickled as the LM that this one stands for."""
        return _same, (self._plain(),)

    def dump_state(self) -> dict[str, Any]:
        """Be saved as the LM that this one stands for."""
        state: dict[str, Any] = self._plain().dump_state()
        return state


def _sendable(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a request without halves of surrogate pairs, which DSPy refuses.

    The list of messages stays the same object, by which DSPy knows that an adapter made it.
    """
    messages = kwargs.get("messages")
    if isinstance(messages, list):
        messages[:] = mended(messages)
    return mended(args), mended(kwargs)


def _cut(lm: dspy.BaseLM, reason: str, entry: dict[str, Any], outputs: list[Any]) -> ReplyCut:
    """Return the error of an answer that was cut short."""
    text = text_of(outputs)
    if reason == "content_filter":
        return ReplyCut("was cut by the provider's content filter", text)
    tokens = entry["usage"].get("completion_tokens") or longest_reply(lm)
    return ReplyCut(f"was cut after {tokens:,} tokens" if tokens else "was cut", text)


def _answer(text: Any) -> Any:
    return split_thinking(text, fields=_fields.get())[1] if isinstance(text, str) else text


@dataclass
class _Noted:
    """What DSPy tells of the requests of one call, and whether they are kept in the caller's history."""

    is_kept: bool
    entries: list[dict[str, Any]] = field(default_factory=list)


_entries: ContextVar[_Noted | None] = ContextVar("_entries", default=None)


@contextlib.contextmanager
def _noted() -> Iterator[_Noted]:
    """Give what DSPy tells of the requests in this scope, also if no history is kept."""
    outer = _entries.get()
    noted = _Noted(is_kept=not dspy.settings.disable_history and (outer is None or outer.is_kept))
    token = _entries.set(noted)
    try:
        with contextlib.nullcontext() if noted.is_kept else dspy.context(disable_history=False):
            yield noted
    finally:
        _entries.reset(token)


class _AttemptByAttempt(_Reading):
    @property
    def num_retries(self) -> int:
        """How often DSPy itself repeats a request: never."""
        return 0

    @num_retries.setter
    def num_retries(self, number: int) -> None:
        self.__dict__["num_retries"] = number

    def _ask(self, *args: Any, **kwargs: Any) -> Any:
        if not self._told_apart(kwargs):
            return self._unsplit()(*args, **kwargs)
        attempt, last = 0, None
        while True:
            try:
                return super()._ask(*args, **kwargs)
            except LMError as error:
                last = error
                _wait(self._pause(error, attempt))
            except Refused as refused:
                raise _after(refused, last) from last
            attempt += 1

    async def _aask(self, *args: Any, **kwargs: Any) -> Any:
        if not self._told_apart(kwargs):
            return await self._unsplit().acall(*args, **kwargs)
        attempt, last = 0, None
        while True:
            try:
                return await super()._aask(*args, **kwargs)
            except LMError as error:
                last = error
                await asyncio.sleep(self._pause(error, attempt))
            except Refused as refused:
                raise _after(refused, last) from last
            attempt += 1

    def _unsplit(self) -> dspy.BaseLM:
        return _standing_for(self._plain(), _Reading)

    def _told_apart(self, options: dict[str, Any]) -> bool:
        """Whether a request can be repeated whole: not with parts of it shown or paid for already."""
        return dspy.settings.send_stream is None and (options.get("n") or self.kwargs.get("n") or 1) == 1

    def _pause(self, error: LMError, attempt: int) -> float:
        """Return the seconds to wait before the next attempt; raise the error if there is none."""
        again = is_retryable_lm_error(error) or _is_garbled(error)
        too_long = isinstance(as_window_error(error), ContextWindowExceededError)  # also one that came as a 500
        if attempt >= self.__dict__["num_retries"] or too_long or not again:
            raise error
        told = getattr(error, "retry_after", None)
        if isinstance(told, int | float) and math.isfinite(told):
            return max(0.0, told)
        return float(min(2**attempt, _LONGEST_PAUSE_SECONDS))


def _is_garbled(error: LMError) -> bool:
    """Whether a provider has answered, but in what is no JSON: a run must not end of it, nor an item be lost."""
    return type(error) is LMProviderError and getattr(error, "status", None) == _OK


def _same(lm: dspy.BaseLM) -> dspy.BaseLM:
    return lm


def _wait(seconds: float) -> None:
    late = given_up.get()
    if late is None:
        time.sleep(seconds)
    else:
        late.wait(seconds)


def _after(refused: Refused, last: Exception | None) -> Refused:
    """Return a refusal that tells of the attempt before it, if there was one."""
    if last is not None:
        refused.why = LimitExceeded(f"{refused.why} It would have been repeated after {last}", refused.why.limit)
    return refused
