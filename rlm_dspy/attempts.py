"""An LM of which every request is a call of its own to whatever listens to DSPy, those that it repeats too."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from typing import Any

import dspy
from dspy.utils.exceptions import LMError, LMProviderError, is_retryable_lm_error

from rlm_dspy.errors import LimitExceeded
from rlm_dspy.metering import Refused
from rlm_dspy.patience import given_up

_LONGEST_PAUSE_SECONDS = 60
_OK = 200


def attempt_by_attempt(lm: Any) -> Any:
    """Return an LM that stands for this one, and shares all that it holds.

    DSPy repeats a failed request up to `num_retries` times inside one call of the LM, and tells of none but the
    last. What is returned here repeats after the same errors and pauses (dspy 3.4), but by calling itself: each
    request is held, entered and traced on its own, and refused when the limits allow no more. It repeats after a
    reply that is no JSON, too.

    An LM whose `forward` or `aforward` is not `dspy.LM`'s asks in a way of its own, and is returned as it is.
    """
    if not isinstance(lm, dspy.LM) or not lm.num_retries or "forward" in vars(lm) or "aforward" in vars(lm):
        return lm
    kind = type(lm)
    if kind.forward is not dspy.LM.forward or kind.aforward is not dspy.LM.aforward:
        return lm
    again = object.__new__(_shown(kind))  # type: ignore[arg-type]
    again.__dict__ = lm.__dict__
    return again


@functools.cache
def _shown(kind: type[dspy.LM]) -> type[dspy.LM]:
    told_as = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "stands_for": kind}
    return type(kind.__name__, (_AttemptByAttempt, kind), told_as)


class _AttemptByAttempt(dspy.LM):
    stands_for: type[dspy.LM]

    @property
    def num_retries(self) -> int:
        """How often DSPy itself repeats a request: never."""
        return 0

    @num_retries.setter
    def num_retries(self, number: int) -> None:
        self.__dict__["num_retries"] = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._told_apart(kwargs):
            return self._plain()(*args, **kwargs)
        attempt, last = 0, None
        while True:
            try:
                return super().__call__(*args, **kwargs)
            except LMError as error:
                last = error
                _wait(self._pause(error, attempt))
            except Refused as refused:
                raise _after(refused, last) from last
            attempt += 1

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        if not self._told_apart(kwargs):
            return await self._plain().acall(*args, **kwargs)
        attempt, last = 0, None
        while True:
            try:
                return await super().acall(*args, **kwargs)
            except LMError as error:
                last = error
                await asyncio.sleep(self._pause(error, attempt))
            except Refused as refused:
                raise _after(refused, last) from last
            attempt += 1

    def _told_apart(self, options: dict[str, Any]) -> bool:
        """Whether a request can be repeated whole: not with parts of it shown or paid for already."""
        return dspy.settings.send_stream is None and (options.get("n") or self.kwargs.get("n") or 1) == 1

    def _pause(self, error: LMError, attempt: int) -> float:
        """Return the seconds to wait before the next attempt; raise the error if there is none."""
        if attempt >= self.__dict__["num_retries"] or not (is_retryable_lm_error(error) or _is_garbled(error)):
            raise error
        told = getattr(error, "retry_after", None)
        if isinstance(told, int | float) and math.isfinite(told):
            return max(0.0, told)
        return float(min(2**attempt, _LONGEST_PAUSE_SECONDS))

    def _plain(self) -> dspy.LM:
        plain = object.__new__(self.stands_for)
        plain.__dict__ = self.__dict__
        return plain

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be copied and pickled as the LM that this one stands for."""
        return _same, (self._plain(),)

    def dump_state(self) -> dict[str, Any]:
        """Be saved as the LM that this one stands for."""
        state: dict[str, Any] = self._plain().dump_state()
        return state


def _is_garbled(error: LMError) -> bool:
    """Whether a provider has answered, but in what is no JSON: a run must not end of it, nor an item be lost."""
    return type(error) is LMProviderError and getattr(error, "status", None) == _OK


def _same(lm: dspy.LM) -> dspy.LM:
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
