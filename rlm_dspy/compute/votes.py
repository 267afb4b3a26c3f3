"""Runs a module several times, each run blind to the others, and takes the answer that most of them give."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import BaseModel, ConfigDict

from rlm_dspy.errors import RLMError
from rlm_dspy.json_values import jsonable
from rlm_dspy.redaction import in_strings
from rlm_dspy.text import logger
from rlm_dspy.usage import CAPS, RunUsage, Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from rlm_dspy.compute.options import Compute
    from rlm_dspy.limits import Limits
    from rlm_dspy.report.representation import RunPrediction
    from rlm_dspy.subcalls.interface import Program

    RunOnce = Callable[[int, Limits], Awaitable[RunPrediction]]

_ANSWERED = ("submitted", "extracted", "direct")
_TEMPERATURE = 0.7
_logger = logger()


class Agreement(BaseModel):
    """How far several runs agree. `Prediction.agreement` is its `model_dump()`."""

    model_config = ConfigDict(frozen=True)

    runs: int
    """How many runs there were."""
    agreeing: int
    """How many of them gave the answer; texts are compared without case and white space."""
    answers: list[dict[str, Any]]
    """The output fields of each run as JSON, in order; those of a run without an answer are None."""
    stops: list[str]
    """Why each run ended, as in `Prediction.stop`."""


async def vote(
    compute: Compute,
    limits: Limits,
    outputs: Sequence[str],
    run: Callable[[int, Limits], Awaitable[RunPrediction]],
) -> RunPrediction:
    """Return the answer that most of some runs give, with `agreement` and the usage of all.

    DSPy's trace gets the calls of the run whose answer it is: optimizers would take those of other runs for right.

    Args:
        compute: How many runs, and when.
        limits: The limits of all runs together.
        outputs: The names of the output fields.
        run: Runs the module once, by the number of the run (the first is 0) and the limits that are left for it.

    Raises:
        Exception: Whatever ends the first run. An error that ends a later one ends the voting.
    """
    started, trace, traces = time.monotonic(), dspy.settings.trace, list[list[Any]]()

    async def traced(number: int, limits: Limits) -> RunPrediction:
        traces.append([])
        with dspy.context(trace=None if trace is None else traces[-1]):
            return await run(number, limits)

    try:
        made = [await traced(0, limits)]
    except BaseException:
        _add(trace, traces[0])
        raise
    while len(made) < compute.votes and (len(made) > 1 or _goes_on(compute, made[0], outputs)):
        left = _left(limits, made, time.monotonic() - started)
        if left is None or _is_decided(made, outputs, compute.votes):
            break
        try:
            made.append(await traced(len(made), left))
        except (dspy.LMError, RLMError, dspy.CodeInterpreterError) as error:
            _logger.warning("RLM: vote %d failed: %s: %s", len(made) + 1, type(error).__name__, error)
            break
    best = _best(made, outputs)
    _add(trace, traces[best])
    return _with_agreement(made, best, outputs)


def _add(trace: list[Any] | None, calls: list[Any]) -> None:
    """Add calls to DSPy's trace, if there is one."""
    if trace is not None:
        trace.extend(calls)


@contextlib.contextmanager
def replies_anew(rlm: Program, number: int) -> Iterator[None]:
    """Let a copy of a module get other replies in this scope than an earlier run: no cache answers for it.

    An LM with temperature 0 gets 0.7. In DSPy's trace, calls are those of the module's own predictors.

    Args:
        rlm: The copy; its LMs are replaced.
        number: The number of the run; nothing is changed for the first, 0.
    """
    if not number:
        yield
        return
    own = {}
    for name in ("act", "query"):
        predictor = copy.copy(getattr(rlm, name))
        predictor.lm = _anew(predictor.lm, number)
        own[id(predictor)] = getattr(rlm, name)
        setattr(rlm, name, predictor)
    rlm.sub_lm = _anew(rlm.sub_lm, number)
    try:
        with dspy.context(lm=_anew(dspy.settings.lm, number)):
            yield
    finally:
        if (trace := dspy.settings.trace) is not None:
            trace[:] = [(own.get(id(predictor), predictor), *call) for predictor, *call in trace]


def _anew(lm: dspy.BaseLM | None, number: int) -> dspy.BaseLM | None:
    if lm is None:
        return None
    warmer = {"temperature": _TEMPERATURE} if lm.kwargs.get("temperature") == 0 else {}
    return lm.copy(rollout_id=number, **warmer)


def _goes_on(compute: Compute, first: RunPrediction, outputs: Sequence[str]) -> bool:
    """Whether to run again after the first run."""
    refused = any(step["kind"] == "refused" for step in first.trajectory)
    grounded = any(first.sources.get(name) for name in outputs)
    return compute.vote_if == "always" or first.stop not in ("submitted", "direct") or refused or not grounded


def _is_decided(made: Sequence[RunPrediction], outputs: Sequence[str], votes: int) -> bool:
    keys = Counter(filter(None, (_key(each, outputs) for each in made)))
    return max(keys.values(), default=0) * 2 > votes


def _left(limits: Limits, made: Sequence[RunPrediction], seconds: float) -> Limits | None:
    """Return what the runs so far left of the limits; None if that is not enough for another."""
    used = sum((Usage(**{name: each.usage[name] for name in Usage.model_fields}) for each in made), Usage())
    left: dict[str, Any] = {}
    for name, unit in CAPS.items():
        if (cap := getattr(limits, name)) is not None:
            left[name] = cap - (getattr(used, unit) or 0)
    if limits.max_seconds is not None:
        left["max_seconds"] = limits.max_seconds - seconds
    turns = sum(each.usage["by_role"].get("act", {}).get("calls", 0) for each in made)
    left["max_llm_calls"] = max(0, limits.max_llm_calls - max(0, used.calls - turns))
    is_enough = all(value > 0 for name, value in left.items() if name != "max_llm_calls")
    return replace(limits, **left) if is_enough else None


def _best(made: Sequence[RunPrediction], outputs: Sequence[str]) -> int:
    """Return the number of the first prediction with the most frequent answer."""
    keys = [_key(each, outputs) for each in made]
    counts = Counter(filter(None, keys))
    return keys.index(max(counts, key=lambda key: (counts[key], -keys.index(key)), default=keys[0]))


def _with_agreement(made: Sequence[RunPrediction], best: int, outputs: Sequence[str]) -> RunPrediction:
    """Return the best of some predictions, with the usage of all."""
    prediction, keys = made[best], [_key(each, outputs) for each in made]
    if len(made) > 1:
        prediction["usage"] = _usage_of(made).model_dump() if "usage" not in outputs else prediction["usage"]
    agreement = Agreement(
        runs=len(made),
        agreeing=keys.count(keys[best]) if keys[best] else 0,
        answers=[{name: jsonable(each[name]) for name in outputs} for each in made],
        stops=[each.stop for each in made],
    )
    if "agreement" not in outputs:
        prediction["agreement"] = agreement.model_dump()
    return prediction


def _key(prediction: RunPrediction, outputs: Sequence[str]) -> str:
    """Return the answer in a form to compare; empty for none."""
    if prediction.stop not in _ANSWERED:
        return ""
    fields = {name: jsonable(prediction[name]) for name in outputs}
    return json.dumps(in_strings(fields, lambda text: " ".join(text.casefold().split())), sort_keys=True)


def _usage_of(made: Sequence[RunPrediction]) -> RunUsage:
    """Return the usage of some runs together."""
    parts = [RunUsage.model_validate(each.usage) for each in made]
    total = sum(parts, Usage())
    ad_hoc: Counter[str] = Counter()
    for part in parts:
        ad_hoc.update(part.ad_hoc)
    return RunUsage(
        **total.model_dump(),
        seconds=math.fsum(part.seconds for part in parts),
        limit=next((part.limit for part in parts if part.limit), None),
        by_role=_together([part.by_role for part in parts]),
        by_model=_together([part.by_model for part in parts]),
        reused=sum(part.reused for part in parts),
        failed=sum(part.failed for part in parts),
        ad_hoc=dict(ad_hoc),
    )


def _together(parts: Sequence[dict[str, Usage]]) -> dict[str, Usage]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum((part.get(name, Usage()) for part in parts), Usage()) for name in names}
