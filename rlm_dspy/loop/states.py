"""Reads the state of an RLM's predictors from a saved program, and rejects the state of another module."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_UPSTREAM = frozenset({"generate_action", "extract"})
_OF_A_PREDICTOR = frozenset({"signature", "demos"})
_METADATA = "metadata"
_logger = logging.getLogger("dspy.rlm_dspy")


def predictor_states(state: Mapping[str, Any], predictors: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the state of each predictor in a saved state; log missing and unknown predictors.

    Args:
        state: What `dump_state` gave, or `save` wrote.
        predictors: The names of the module's predictors.

    Raises:
        ValueError: If it holds none of them, or part of one; the message says what to do instead.
    """
    found = {name: state[name] for name in predictors if name in state}
    if not found:
        raise ValueError(f"Invalid state: {_whose(state)} The predictors of this RLM are {_listed(predictors)}.")
    for name, part in found.items():
        if not isinstance(part, dict) or not part.keys() >= _OF_A_PREDICTOR:
            raise ValueError(
                f"Invalid state: the predictor {name!r} lacks {_listed(_OF_A_PREDICTOR)}. Save the program again."
            )
    if missing := [name for name in predictors if name not in state]:
        _logger.warning("The state lacks the predictors %s: they stay as they are.", _listed(missing))
    if unknown := state.keys() - set(predictors) - {_METADATA}:
        _logger.warning("The state also has %s, which this RLM does not have: they are ignored.", _listed(unknown))
    return {name: {"lm": None, **part} for name, part in found.items()}


def _whose(state: Mapping[str, Any]) -> str:
    """Return what a state is of that holds nothing for an RLM."""
    if state.keys() >= _UPSTREAM:
        return (
            "it is that of a dspy.RLM, whose instructions and demos are about other prompts. Compile this RLM "
            "instead; its LM is set with rlm.set_lm(...), its turns' instructions with rlm.act.signature."
        )
    if state.keys() >= _OF_A_PREDICTOR:
        return "it is that of one predictor. Load it with rlm.act.load_state(...); a policy with RLM(policy=...)."
    names = state.keys() - {_METADATA}
    return f"it is that of another program, with {_listed(names)}." if names else "it is empty."


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
