"""A scope in which every LM call is entered into a ledger, and refused if the limits do not allow it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.budget.lm_info import reported_cost, tokens_of
from rlm_dspy.budget.meter import METERS, Meter, latest_entry, meters_in_force, request_under_way
from rlm_dspy.budget.metered_lm import open_door
from rlm_dspy.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.budget.ledger import Ledger, Tally


@contextlib.contextmanager
def metered(
    ledger: Ledger,
    role: str,
    *,
    keeper: object = None,
    counted: bool = False,
    mirror: Tally | None = None,
    input_tokens: float | None = None,
    raw: bool = False,
) -> Iterator[Meter]:
    """Enter every LM call of this scope into `ledger` under `role`, and refuse what its limits do not allow.

    A scope inside another of the same ledger takes its place: no call is entered twice.

    Args:
        ledger: Where calls are entered.
        role: Who asks: `act`, `query`, a sub's name, `ad_hoc`, `extract`, `fold`; of a child `child.` and these.
        keeper: The run whose last turn this is; see `Ledger.hold`.
        counted: Whether each request takes one of `max_llm_calls`.
        mirror: Where what they use is added up too, with that of scopes inside that take this one's place.
        input_tokens: How many tokens the request will read at most, if that is known and no other is under way:
            the reply may then take half of what is left beyond them, else a fair part of it.
        raw: Whether replies are returned as the LM gives them: with thinking, and also if they were cut short.

    Raises:
        LimitExceeded: If the limits did not allow a call, also if what asked has gone on without it.
    """
    open_door()
    outer = meters_in_force()
    mirrors = tuple(each for meter in outer if meter.ledger is ledger for each in meter.mirrors)
    meter = Meter(
        ledger,
        role,
        keeper=keeper,
        counted=counted,
        mirrors=mirrors if mirror is None else (*mirrors, mirror),
        input_tokens=input_tokens,
        raw=raw,
    )
    try:
        with dspy.context(**{METERS: (meter, *(each for each in outer if each.ledger is not ledger))}):
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


def role() -> str:
    """Return the role of the innermost scope; empty outside of any."""
    return next((meter.role for meter in meters_in_force()), "")


def reported(outputs: Any) -> dict[str, Any]:
    """Return what is reported of the LM call that has just ended: tokens by the fields of `Usage`, price, cached.

    Tokens are 0 and the price is None where nothing is reported, as of a call that failed.

    Args:
        outputs: What the call returned.
    """
    request, entry = request_under_way.get(), latest_entry.get()
    if request is not None:
        entry = request.entry(outputs)
    elif entry.get("outputs") is not outputs:
        entry = {}
    cached = bool(getattr(entry.get("response"), "cache_hit", False))
    cost = None if cached else reported_cost(entry)
    return {**tokens_of({} if cached else entry.get("usage") or {}), "cost": cost, "cached": cached}
