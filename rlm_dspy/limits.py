"""Defines `Limits`: the caps on turns, calls, tokens, cost, time and depth of a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, replace
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

from rlm_dspy.errors import briefly_shown
from rlm_dspy.text import unknown_argument

_T = TypeVar("_T")

_WHOLE = {
    "max_iters": 1,
    "max_llm_calls": 0,
    "max_output_chars": 100,
    "max_concurrency": 1,
    "max_depth": 0,
}
_WHOLE_OR_NONE = {
    "max_input_tokens": 1,
    "max_output_tokens": 1,
    "max_failures": 1,
    "max_repetitions": 1,
    "max_context_tokens": 1_000,
}
_POSITIVE_OR_NONE = ("max_cost", "max_seconds", "max_cell_seconds")


class OptionGroup:
    """A frozen dataclass of options that is given to a module as one argument."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @briefly_shown()
    def __new__(cls, **given: object) -> Self:
        """Refuse a name that is not an option."""
        for name in given.keys() - cls.__dataclass_fields__.keys():
            raise unknown_argument(cls.__name__, name, cls.__dataclass_fields__)
        return super().__new__(cls)


@dataclass(frozen=True, kw_only=True)
class Limits(OptionGroup):
    """The limits on what one run and its children may spend. None means no limit.

    A reached limit never discards findings; the run converges: the rest of the budget pays for one last
    turn, and for the extraction of the answer from the trajectory if that turn does not SUBMIT. `max_cost`,
    `max_input_tokens` and `max_output_tokens` are never overspent: a request is made only if the most that it can
    use still fits. What it used is what the server reports; nothing if it reports no usage.

    Raises:
        TypeError: If there is no limit of a name; the message names the closest one.
        ValueError: If a number is out of its range.
    """

    max_iters: int = 20
    """Turns of the root model; at least 1. The model is told which turn is the last."""
    max_llm_calls: int = 50
    """Model calls made from inside the REPL, failed ones and retries included; 0 allows none.

    Each request of a `dspy.LM` counts, its own retries (`num_retries`) included; an LM whose class
    overrides `forward` is counted per call.
    """
    max_output_chars: int = 10_000
    """Characters of one turn's output that the model is shown and the trajectory keeps; at least 100."""
    max_concurrency: int = 16
    """Concurrent sub-calls of a run and its children, and concurrent children of one batch; at least 1."""
    max_depth: int = 1
    """How deep children may be nested: 1 allows children of the root, 0 none."""
    max_input_tokens: int | None = None
    """Input tokens of all model calls together, turns included."""
    max_output_tokens: int | None = None
    """Output tokens of all model calls together."""
    max_cost: float | None = None
    """USD for all model calls together. Every model needs a price: a known one, or one in `prices`.

    A model whose replies report their cost (OpenRouter, LiteLLM's proxy) needs none after its first call: the
    maximum cost of a request is then estimated from its last calls.
    """
    max_seconds: float | None = None
    """Wall-clock seconds. Shortly before the end, running code and sub-calls are interrupted."""
    max_cell_seconds: float | None = None
    """Wall-clock seconds of one turn's code, sub-calls included; None leaves it to the interpreter."""
    max_failures: int | None = None
    """After this many failed turns in a row, the next turn is the last.

    A turn fails if its code raised, it has no code, its code or its SUBMIT was refused, or the interpreter died.
    """
    max_repetitions: int | None = 2
    """After this many turns in a row that repeat earlier code with the same outcome, the next turn is the last.

    The model is told of each. Code that calls a tool is not counted.
    """
    max_context_tokens: int | None = None
    """Tokens of one turn's messages; a longer conversation is folded. None: as many as the model's window has.

    The window is the model's known one, or the one that a server names when it rejects a longer request.
    """
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    """USD per million input and output tokens, by the LM's `model`; for models without a known price."""

    @briefly_shown()
    def __post_init__(self) -> None:
        for name, least in {**_WHOLE, **_WHOLE_OR_NONE}.items():
            value = getattr(self, name)
            if value is None and name in _WHOLE_OR_NONE:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        for name in _POSITIVE_OR_NONE:
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise ValueError(f"{name} must be a number above 0, or None for no limit, not {value!r}.")
        if not isinstance(self.prices, Mapping) or not all(map(_is_price, self.prices.values())):
            raise ValueError(
                "prices must give USD per million tokens, read and written, by model: "
                f"prices={{'openai/gpt-5-mini': (0.25, 2.0)}}, not {self.prices!r}."
            )


class _Field(Generic[_T]):
    """An attribute that reads and sets the field of this name in `self.limits`."""

    def __set_name__(self, owner: type[Limited], name: str) -> None:
        self._name, self.__doc__ = name, f"`limits.{name}`; see `Limits`."

    @overload
    def __get__(self, limited: None, owner: type[Limited]) -> Self: ...

    @overload
    def __get__(self, limited: Limited, owner: type[Limited]) -> _T: ...

    def __get__(self, limited: Limited | None, owner: type[Limited]) -> Self | _T:
        return self if limited is None else getattr(limited.limits, self._name)

    def __set__(self, limited: Limited, value: _T) -> None:
        given: dict[str, Any] = {self._name: value}
        limited.limits = replace(limited.limits, **given)


class Limited:
    """Exposes the fields of its `limits` as attributes, to read and to set."""

    limits: Limits
    max_iters = _Field[int]()
    max_llm_calls = _Field[int]()
    max_output_chars = _Field[int]()
    max_concurrency = _Field[int]()
    max_depth = _Field[int]()
    max_input_tokens = _Field[int | None]()
    max_output_tokens = _Field[int | None]()
    max_cost = _Field[float | None]()
    max_seconds = _Field[float | None]()
    max_cell_seconds = _Field[float | None]()
    max_failures = _Field[int | None]()
    max_repetitions = _Field[int | None]()
    max_context_tokens = _Field[int | None]()
    prices = _Field[Mapping[str, tuple[float, float]]]()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_price(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_is_number(n) and n >= 0 for n in value)  # noqa: PLR2004


def limits_of_budget(budget: Limits | float, names: Collection[str], one: str) -> Limits:
    """Return the limits of a budget that a user gives; a number is USD.

    Args:
        budget: The budget.
        names: The limits that it may have.
        one: What one unit of it is called, e.g. "run".

    Raises:
        ValueError: If it sets none of these limits, or a limit that holds for one unit only.
    """
    limits = budget if isinstance(budget, Limits) else Limits(max_cost=budget)
    plain = Limits(**{name: getattr(limits, name) for name in (*names, "prices")})
    if limits != plain or not any(getattr(limits, name) for name in names):
        raise ValueError(
            f"budget must be USD or a Limits of {', '.join(names)} (and prices), for all {one}s together, not "
            f"{budget!r}. Pass limits of one {one} to RLM(limits=...)."
        )
    return limits
