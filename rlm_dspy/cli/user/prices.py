"""Reads the prices of models, and checks that the cost is known if it is limited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlm_dspy.errors import UnknownPrice, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import dspy

    from rlm_dspy.limits import Limits

    Price = tuple[float, float]
    """US dollars per million tokens, read and written."""


def read_price(option: str, text: str | None) -> Price | None:
    """Return the price in a text like `0.25/2`; None without a text.

    Raises:
        UsageError: If it is not a price.
    """
    if text is None:
        return None
    try:
        read, written = map(float, text.split("/"))
    except ValueError:
        raise UsageError(
            f"{option} {text}: write US dollars per million tokens read and written, e.g. {option} 0.25/2."
        ) from None
    return read, written


def limits_with_prices(
    limits: Mapping[str, Any], models: Mapping[dspy.LM, Price | None], note: Callable[[str], None]
) -> Limits:
    """Return the limits of a run.

    Args:
        limits: Fields of `Limits` that are set.
        models: The LM and the LM of sub-calls, each with its price if an option gives one.
        note: Called with a line about a price that is not used.

    Raises:
        UsageError: If the cost is limited and a price is not known.
    """
    from rlm_dspy.budget.lm_info import check_price, price_of
    from rlm_dspy.models import EMBEDDED, limits_for

    prices: dict[str, Price] = {**limits.get("prices", {})}
    prices |= {lm.model: (0.0, 0.0) for lm in models if lm.model.startswith(f"{EMBEDDED}/")}
    prices |= {lm.model: price for lm, price in models.items() if price}
    found = limits_for(next(iter(models)), **{**limits, "prices": prices})
    for lm, price in models.items():
        if price and price_of(lm, {}):
            note(f"The price of {lm.model} is known; the given one is not used.")
        try:
            check_price(lm, found)
        except UnknownPrice:
            raise UsageError(
                f"--max-cost needs the price of {lm.model}, which is not known. Give it in US dollars per million "
                f"tokens read and written: --price 0.25/2 (of the model for sub-calls: --sub-price), or in the "
                f'configuration file: [limits] prices = {{ "{lm.model}" = [0.25, 2.0] }}.'
            ) from None
    return found
