"""Lets a `StreamListener` of DSPy name an output field of an RLM, which no predictor has."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

import dspy

from rlm_dspy._dspy_compat import find_listened_predictors, replace_finder

if TYPE_CHECKING:
    from collections.abc import Sequence


class HasStreamedOutputs(dspy.Module):
    """A module whose own output fields, those of `signature`, can have listeners."""

    signature: Any

    def __new__(cls, *_: object, **__: object) -> Self:
        """Create a module, also when one is loaded, and let DSPy find its outputs from now on."""
        _let_dspy_find_outputs()
        made: Self = super().__new__(cls)
        return made


@functools.cache
def _let_dspy_find_outputs() -> None:
    replace_finder(_find)


def _find(program: dspy.Module, listeners: Sequence[dspy.streaming.StreamListener]) -> Any:
    """Find the predictor of each listener as DSPy does, but bind a listener to an output of an RLM to the RLM.

    An output of an RLM takes precedence over a field of its own predictors.

    Raises:
        ValueError: If no module has a field, or several have it.
    """
    rlms = [(name, each) for name, each in program.named_sub_modules(HasStreamedOutputs)]
    for listener in listeners if rlms else ():
        if listener.predict is None:
            _bind(listener, program, rlms)
        else:
            _settle(listener, rlms)
    return find_listened_predictors(program, listeners)


def _settle(listener: dspy.streaming.StreamListener, rlms: list[tuple[str, HasStreamedOutputs]]) -> None:
    """Bind a listener that was given an RLM, or its `act`, to that of the two that has the field, by its path.

    Raises:
        ValueError: If neither has it.
    """
    for path, rlm in rlms:
        act = dict(rlm.named_predictors())["act"]
        owners = [(path.removeprefix("self."), rlm), (f"{path}.act".removeprefix("self."), act)]
        if listener.predict is act:
            owners.reverse()
        elif listener.predict is not rlm:
            continue
        for name, owner in owners:
            if listener.signature_field_name in owner.signature.output_fields:
                listener.predict_name, listener.predict = listener.predict_name or name, owner
                return
        raise ValueError(
            f"Invalid StreamListener: this RLM has no output field {listener.signature_field_name!r}. "
            f"Name one of {[*rlm.signature.output_fields]}, or code or reasoning for its turns."
        )


def _bind(
    listener: dspy.streaming.StreamListener, program: dspy.Module, rlms: list[tuple[str, HasStreamedOutputs]]
) -> None:
    name = listener.signature_field_name
    found = [(path, rlm) for path, rlm in rlms if name in rlm.signature.output_fields]
    predictors = [each for _, each in program.named_predictors() if name in each.signature.output_fields]
    if not found:
        if not predictors:
            raise ValueError(
                f"Invalid StreamListener: no predictor and no RLM of the program has an output field {name!r}. "
                f"Name an output field of one, or code or reasoning for the turns of an RLM."
            )
        return
    path, rlm = found[0]
    inside = {id(each) for _, each in rlm.named_sub_modules()}
    if others := [each for each in [*predictors, *(rlm for _, rlm in found)] if id(each) not in inside]:
        raise ValueError(
            f"Invalid StreamListener: {name!r} is an output field of {len(others) + 1} modules of the program. "
            f"Say which one is meant: StreamListener({name!r}, predict=program.<module>)."
        )
    listener.predict_name, listener.predict = path.removeprefix("self."), rlm
