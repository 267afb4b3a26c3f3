"""Has LMs asked as the limits of a `metered` scope need it: for short enough replies, and attempt by attempt."""

from __future__ import annotations

import contextlib
import functools
import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.callback import with_callbacks

from rlm_dspy.attempts import answering, attempt_by_attempt
from rlm_dspy.lms import REPLY_LIMITS, longest_reply, price_of
from rlm_dspy.metering import Meter, Refused, are_meters, aside, heard, ledger_in_force, narrowest
from rlm_dspy.refusals import sizes_of

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
