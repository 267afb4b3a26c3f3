"""Saves policies (the instructions and demos of `act`) with their provenance, and applies them to programs."""

from __future__ import annotations

import copy
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy import signatures
from rlm_dspy.optimize.statistics import wilson
from rlm_dspy.prompt.adapter import Act

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence


def save_policy(
    program: dspy.Module,
    path: str | os.PathLike[str],
    *,
    name: str,
    model: str = "",
    predictor: str | None = None,
    optimizer: str = "",
    data: str = "",
    seeds: Sequence[int] = (),
    scores: Mapping[str, Sequence[float]] | None = None,
    **more: Any,
) -> None:
    """Save what `act` has learned in a program as a file for `RLM(..., policy=path)`, on any signature.

    Args:
        program: An RLM, or a program with one inside.
        path: The file.
        name: The name of the policy.
        model: The model it was found for; default: the configured one.
        predictor: The name of the `act` to save, if the program has several.
        optimizer: The optimizer that found it.
        data: The training data, described so that others can reproduce it.
        seeds: The seeds of the optimizer and the data.
        scores: Scores by dataset, e.g. `{"held out": [1.0, 0.0, ...]}`; stored as mean, number and,
            if they are between 0 and 1, 95 % interval.
        **more: Further provenance; JSON values.

    Raises:
        ValueError: If the program has no `act`, or several and none is named; if a score is not a finite number.
    """
    provenance = {
        "date": datetime.now(UTC).date().isoformat(),
        "optimizer": optimizer,
        "data": data,
        "seeds": list(seeds),
        "scores": {on: summary(values) for on, values in (scores or {}).items()},
        **more,
    }
    state = learned_state(act_of(program, predictor))
    signatures.write_policy(
        path, state, name=name, model=model or str(getattr(dspy.settings.lm, "model", "")), provenance=provenance
    )


def learned_state(predictor: dspy.Predict) -> dict[str, Any]:
    """Return the state of a predictor without its LM: no model, no key, and nothing that cannot be saved."""
    bare = copy.copy(predictor)
    bare.lm = None
    state: dict[str, Any] = bare.dump_state()
    return state


def summary(scores: Sequence[float]) -> dict[str, Any]:
    """Return mean, number and 95 % interval of scores; no interval if some are not between 0 and 1.

    Raises:
        ValueError: If a score is not a finite number.
    """
    if unusable := [score for score in scores if not math.isfinite(score)]:
        raise ValueError(f"Invalid score {unusable[0]}: a score must be a finite number.")
    mean = sum(scores) / len(scores) if scores else None
    shares = all(0 <= score <= 1 for score in scores)
    return {
        "mean": mean,
        "of": len(scores),
        "interval_95": list(wilson(sum(scores), len(scores))) if shares else None,
    }


def act_of(program: dspy.Module, name: str | None = None) -> Act:
    """Return the `act` predictor of a program.

    Args:
        program: An RLM, or a program with one inside.
        name: Which one, if there are several.

    Raises:
        ValueError: If there is no such predictor, or several and none is named; the message lists them.
    """
    acts = acts_in(program)
    if name is None and len(acts) == 1:
        return next(iter(acts.values()))
    if name is None or name not in acts:
        wanted = f"name one of {sorted(acts)}" if acts else "the program contains no RLM"
        raise ValueError(f"Invalid predictor {name!r}: {wanted}.")
    return acts[name]


def acts_in(program: dspy.Module) -> dict[str, Act]:
    """Return the `act` predictors of a program by name; those of compiled, frozen RLMs if there are no others."""
    acts = {name: p for name, p in program.named_predictors() if isinstance(p, Act)}
    found = acts or {name.removeprefix("self."): act for name, act in program.named_sub_modules(Act)}
    return {name: act for name, act in found.items() if "candidate_programs[" not in name}  # what optimizers keep


def with_policy(program: dspy.Module, policy: str | os.PathLike[str] | None) -> Any:
    """Return a copy of a program in which every `act` starts from a policy.

    Args:
        program: An RLM, or a program with some inside.
        policy: The name of a shipped policy or the path of a file; None for plain instructions and no demos.

    Raises:
        ValueError: If there is no such policy.
    """
    state = Act(signatures.Act).dump_state() if policy is None else signatures.load_policy(policy)
    changed = program.deepcopy()
    for act in acts_in(changed).values():
        lm = act.lm
        act.load_state(state)
        act.lm = lm
    return changed
