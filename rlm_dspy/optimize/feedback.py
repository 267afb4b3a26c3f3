"""Rates a run: as text for optimizers that rewrite instructions (GEPA), as a reward for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.coverage.text_match import merged
from rlm_dspy.inputs import Text
from rlm_dspy.optimize.statistics import score_of
from rlm_dspy.optimize.traced_runs import traced_runs
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.text import counted, cut
from rlm_dspy.trajectory import Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import JsonValue

    from rlm_dspy.optimize.statistics import Metric
    from rlm_dspy.optimize.traced_runs import Trace

Coverage = Callable[[dspy.Example, dspy.Prediction], str]
"""`coverage(example, prediction)`: a sentence on unread parts of the input; empty if there are none."""

_WHAT_WENT_WRONG = {
    "error": "its code failed",
    "refused": "its SUBMIT was refused",
    "denied": "its code was refused",
    "no_code": "its reply held no Python block",
    "interpreter_lost": "its code killed the interpreter",
}
_STOPS = {
    "extracted": (
        "The run never called SUBMIT; the answer had to be read from the transcript. "
        "SUBMIT as soon as the answer is found, at the latest on the last turn."
    ),
    "unanswered": "The run ended without an answer: no SUBMIT. On the last turn SUBMIT the best guess there is.",
}
_ENDS = {
    "submitted": "it called SUBMIT, and no turn followed.",
    "unknown": "no turn followed.",
}
_LINE_CHARS = 240
_LITTLE = 0.05


def unread(example: dspy.Example, prediction: dspy.Prediction) -> str:
    """Return the share of each text that code never read, showed or sent to a sub-call; empty if small.

    Known only for runs inside `rlm_dspy.coverage.watched()`.
    """
    steps = _steps_in(_prediction(prediction))
    sent = [span for step in steps for call in step.calls for span in call.sent]
    spans = merged([*sent, *(span for step in steps for span in (*step.read, *step.shown))], most=None)
    said = []
    for name, value in example.inputs().items() if spans else ():
        if isinstance(value, str | Text) and len(value):
            share = 1 - sum(end - start for of, start, end in spans if of == name) / len(value)
            said += [f"{share:.0%} of {name} was never read."] if share > _LITTLE else []
    return " ".join(said)


def with_feedback(metric: Metric, *, coverage: Coverage = unread, max_chars: int = 2_000) -> Callable[..., Any]:
    """Return a metric for `dspy.GEPA`: the score of `metric`, with text on what each predictor did wrong.

    It takes `(gold, pred, trace=None, pred_name=None, pred_trace=None)` and returns
    `dspy.Prediction(score, feedback)`. For `act` the feedback reports failed turns (the last line of an error,
    why SUBMIT was refused), how the run ended, the limit it hit, unread parts of the input, and the result
    of the reviewed turn; for a sub-call's predictor it reports failed and repeated calls. It
    comes from the prediction's trajectory if the program returns that of the reviewed RLM, else from the trace.

    Args:
        metric: `metric(example, prediction, trace)`: a bool, a number, or a `dspy.Prediction` with `score` and
            optionally `feedback`, which is kept.
        coverage: Returns a sentence on unread parts of the input: `coverage(example, prediction)`.
        max_chars: The maximum length of the feedback.
    """

    def judge(
        gold: dspy.Example,
        pred: dspy.Prediction,
        trace: Trace = None,
        pred_name: str | None = None,
        pred_trace: Trace = None,
    ) -> dspy.Prediction:
        judged = metric(gold, pred, trace)
        score = score_of(judged)
        pred = _prediction(pred)
        name = (pred_name or "act").rpartition(".")[2]
        act, returned = _act_reviewed(trace, pred_trace), _act_returned(pred, trace)
        is_its_own = act is None or returned in (None, act)
        own = pred if is_its_own else dspy.Prediction()  # another RLM's prediction does not describe this run
        if name == "act":
            said = [*_on_turns(own, trace, pred_trace, act), coverage(gold, pred) if is_its_own else ""]
        else:
            said = _on_calls(name, own, trace, pred_trace, act)
        said = [str(getattr(judged, "feedback", "") or ""), _answered(gold, pred, score), *said]
        return dspy.Prediction(score=score, feedback=cut("\n".join(filter(None, said)), max_chars))

    return judge


def _on_turns(pred: dspy.Prediction, trace: Trace, pred_trace: Trace, act: int | None) -> list[str]:
    """Return feedback on the turns of a run: failures first, then how it ended."""
    steps = _steps_in(pred, trace, act)
    broken = [call for step in steps for call in step.calls if call.error]
    limit = _limit_of(pred)
    return [
        *_failures(steps),
        *_of_this_turn(steps, pred_trace),
        *(f"A sub-call to {call.name} failed: {_last_line(call.error)}" for call in broken[:3]),
        _STOPS.get(pred.get("stop", ""), ""),
        f"The run hit its limit {limit} and had to stop early: do the same with less." if limit else "",
        f"It took {counted(len(steps), 'turn')}." if steps else "",
    ]


def _on_calls(name: str, pred: dspy.Prediction, trace: Trace, pred_trace: Trace, act: int | None) -> list[str]:
    """Return feedback on the sub-calls of one predictor: failures, repetitions and their number."""
    calls = [call for step in _steps_in(pred, trace, act) for call in step.calls if call.name == name]
    failed = [call for call in calls if call.error]
    asked = Counter(str(sorted(call.inputs.items())) for call in calls)
    if not calls:
        of = _predictor_of(trace, pred_trace)
        asked = Counter(str(sorted(inputs.items())) for p, inputs, _ in trace or [] if id(p) == of)
    again = sum(asked.values()) - len(asked)
    return [
        *(f"{len(failed)} of {len(calls)} calls failed, first with: {_last_line(c.error)}" for c in failed[:1]),
        f"{again} of {sum(asked.values())} calls asked what had been asked before." if again else "",
        f"It was called {sum(asked.values())} times in this run." if asked else "",
    ]


def _steps_in(pred: dspy.Prediction, trace: Trace = None, act: int | None = None) -> list[Step]:
    """Return the steps of a run: from an RLM's prediction, else from the runs in the trace.

    Args:
        pred: What the program returned.
        trace: The trace of the whole call.
        act: The id of an `act` in the trace; restricts the result to its runs.
    """
    kept: list[JsonValue] | None = pred.get("trajectory")
    if kept and isinstance(kept, list) and all(isinstance(s, dict) and {"code", "kind"} <= s.keys() for s in kept):
        return [Step.model_validate(step) for step in kept]
    runs = [run for run in traced_runs(trace or []) if act in (None, id(run.predictor))]
    return [step for run in runs for step in run.all_steps]


def _act_returned(pred: dspy.Prediction, trace: Trace) -> int | None:
    """Return the id in the trace of the `act` whose run a prediction holds; None if it holds no run."""
    codes = {step.code.strip() for step in _steps_in(pred)}
    runs = [run for run in reversed(traced_runs(trace or [])) if codes and not run.nested]
    same = [run for run in runs if {s.code.strip() for s in run.all_steps if s.kind != "folded"} <= codes]
    run = max(same or runs[:1], key=lambda run: len(run.steps), default=None)
    return id(run.predictor) if run else None


def _act_reviewed(trace: Trace, pred_trace: Trace) -> int | None:
    """Return the id in the trace of the reviewed `act`, or of the one whose code called the reviewed predictor."""
    looked_at = {id(inputs) for _, inputs, _ in pred_trace or []}
    act = None
    for predictor, inputs, _ in trace or []:
        act = id(predictor) if isinstance(predictor, Act) else act
        if id(inputs) in looked_at:
            return act
    return None


def _predictor_of(trace: Trace, pred_trace: Trace) -> int | None:
    """Return the id in the trace of the reviewed predictor; GEPA passes another copy of it."""
    looked_at = {id(inputs) for _, inputs, _ in pred_trace or []}
    return next((id(p) for p, inputs, _ in trace or [] if id(inputs) in looked_at), None)


def _answered(gold: dspy.Example, pred: dspy.Prediction, score: float) -> str:
    """Return expected and actual values, field by field, of an answer below the full score."""
    if score >= 1:
        return ""
    pairs = [
        f"{name} is {cut(repr(gold[name]), _LINE_CHARS)}, the program gave {cut(repr(pred[name]), _LINE_CHARS)}"
        for name in gold.labels()
        if name in pred
    ]
    return f"Expected: {'; '.join(pairs)}." if pairs else ""


def _failures(steps: list[Step]) -> Iterator[str]:
    """Yield the first failure, then the count of each kind."""
    failed = [(number, step) for number, step in enumerate(steps, start=1) if step.failed]
    for number, step in failed[:1]:
        yield f"The first thing that went wrong: in turn {number} {_failure_text(step)}"
    kinds = Counter(step.kind for _, step in failed)
    if len(failed) > 1:
        counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
        yield f"Failed turns: {len(failed)} of {len(steps)} ({counts})."
        last_number, last = failed[-1]
        if last.kind != failed[0][1].kind:
            yield f"Later, in turn {last_number}, {_failure_text(last)}"


def _failure_text(step: Step) -> str:
    problem = "" if step.kind == "no_code" else f": {cut(step.problem, _LINE_CHARS)}"
    return f"{_WHAT_WENT_WRONG[step.kind]}{problem}{'.' if step.refusals or not problem else ''}"


def _of_this_turn(steps: list[Step], pred_trace: Trace) -> Iterator[str]:
    """Yield the result of the turn that GEPA reviews."""
    for _, inputs, outputs in pred_trace or []:
        code = (getattr(outputs, "code", "") or "").strip()
        at = len(getattr(inputs.get("trajectory"), "steps", ()))
        if at < len(steps) and (step := steps[at]).code.strip() == code:
            end = _failure_text(step) if step.failed else _ENDS.get(step.kind, "its code ran without an error.")
            yield f"The turn shown here is number {at + 1} of {len(steps)}: {end}"


def _prediction(returned: dspy.Prediction | None) -> dspy.Prediction:
    """Return a program's prediction; an empty one if there is none: optimizers score failed runs too."""
    return returned if isinstance(returned, dspy.Prediction) else dspy.Prediction()


def _limit_of(pred: dspy.Prediction) -> str:
    usage: dict[str, JsonValue] | None = pred.get("usage")
    return str(usage.get("limit") or "") if isinstance(usage, dict) else ""


def _last_line(text: str) -> str:
    return cut(text.strip().rpartition("\n")[2], _LINE_CHARS)


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """Penalties on the score of a run. Their sum is at most `most`.

    The defaults are small: with scores of 0 and 1, a right answer of a bad run beats a wrong one of a good run.
    """

    failed_turn: float = 0.02
    """For each turn that failed, whose SUBMIT was refused, or that has no code."""
    failed_call: float = 0.01
    """For each sub-call that failed."""
    repeated_call: float = 0.01
    """For each repeated sub-call."""
    no_submit: float = 0.1
    """If the answer had to be extracted."""
    limit: float = 0.05
    """If the run hit one of its limits."""
    most: float = 0.2
    """The maximum of the sum."""


def trajectory_reward(metric: Metric, penalties: Penalties | None = None) -> Callable[..., float]:
    """Return a metric that subtracts small penalties for the run from the score of `metric`.

    For optimizers that compare runs of one example (SIMBA, GRPO): of two right runs the cleaner one wins. A plain
    metric otherwise: `(example, prediction, trace=None) -> float`. A score of 0 or less is unchanged.

    Args:
        metric: The score of an answer, at best 1.
        penalties: What a run loses for each fault; None for the default `Penalties`.
    """
    rates = penalties or Penalties()

    def reward(example: dspy.Example, prediction: dspy.Prediction, trace: Trace = None) -> float:
        score = score_of(metric(example, prediction, trace))
        return score if score <= 0 else max(0.0, score - min(rates.most, _penalty(prediction, trace, rates)))

    return reward


def _penalty(prediction: dspy.Prediction, trace: Trace, rates: Penalties) -> float:
    """Return the penalty of a run at these `rates`, without the cap."""
    prediction = _prediction(prediction)
    steps, returned = _steps_in(prediction, trace), _act_returned(prediction, trace)
    if returned is not None:  # the prediction belongs to one RLM among several
        others = [run for run in traced_runs(trace or []) if id(run.predictor) != returned and not run.nested]
        steps += [step for run in others for step in run.all_steps]
    calls = [call for step in steps for call in step.calls]
    asked = {(call.name, str(sorted(call.inputs.items()))) for call in calls}
    return (
        rates.failed_turn * sum(step.failed for step in steps)
        + rates.failed_call * sum(bool(call.error) for call in calls)
        + rates.repeated_call * (len(calls) - len(asked))
        + rates.no_submit * (prediction.get("stop", "") in _STOPS)
        + rates.limit * bool(_limit_of(prediction))
    )
