"""Scores runs, for both `dspy.Evaluate` and `mlflow.genai.evaluate`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable  # noqa: TC003  # pydantic reads it
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from mlflow.entities import Trace
from mlflow.genai.scorers import Scorer

from rlm_dspy._dspy_compat import input_names
from rlm_dspy.coverage.tracker import Watch, watching
from rlm_dspy.json_values import jsonable
from rlm_dspy.report.coverage_shares import share_covered
from rlm_dspy.tracing.span_spec import HOW_IT_ENDED
from rlm_dspy.trajectory import Step
from rlm_dspy.usage import RunUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dspy

    from rlm_dspy.optimize.traced_runs import Trace as Calls

_SHORTEST_ANSWER = 2


@dataclass(frozen=True)
class Facts:
    """The facts about a run that scorers use, from a prediction or a trace.

    Attributes:
        kinds: How each turn ended, as in `Step.kind`; None if there is no run, or the prediction does not hold it.
        usage: The usage of the run, as in `Prediction.usage`.
        answers: The output fields by name.
        coverage: The share of the inputs that was covered, from 0 to 1; None if not watched.
        texts: The sources of an answer: inputs and printed output. A trace has only the ends of long ones.
    """

    kinds: list[str] | None = None
    usage: RunUsage = field(default_factory=RunUsage)
    answers: Mapping[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    coverage: float | None = None


class RunScorer(Scorer):
    """A score of one run: a metric of DSPy and a scorer of MLflow, which reads the trace.

    Attributes:
        measure: Returns the score, or None if unknown.
    """

    measure: Callable[[Facts], float | None]

    @property
    def __name__(self) -> str:
        """The name, for MLflow."""
        return str(self.name)

    @overload
    def __call__(self, *, trace: Trace) -> float | None: ...

    @overload
    def __call__(
        self, example: dspy.Example, prediction: dspy.Prediction, trace: Calls = None, *_: Any, **__: Any
    ) -> float: ...

    def __call__(
        self,
        example: dspy.Example | None = None,
        prediction: dspy.Prediction | None = None,
        trace: Trace | Calls = None,
        *_: Any,
        **__: Any,
    ) -> float | None:
        """Return the score of a prediction of an RLM, nan if unknown; or of a trace of MLflow, None if unknown."""
        if isinstance(trace, Trace):
            return self.measure(facts_of_trace(trace))
        measured = None if prediction is None else self.measure(facts_of(prediction, example))
        return math.nan if measured is None else measured


def for_mlflow() -> list[Any]:
    """Return all scorers of this module, for `mlflow.genai.evaluate`."""
    return list(ALL)


def facts_of(prediction: dspy.Prediction, example: dspy.Example | None = None) -> Facts:
    """Return the facts of a prediction of an RLM, or of a program that returns one."""
    steps = prediction.get("trajectory") or []
    reserved = {"trajectory", "usage", "stop", "final_reasoning", "artifacts"}
    inputs = example.inputs().values() if example is not None and input_names(example) else []
    return Facts(
        coverage=_coverage(example, steps),
        kinds=[step["kind"] for step in steps] if "trajectory" in prediction else None,
        usage=RunUsage.model_validate(prediction.get("usage") or {}),
        answers={name: value for name, value in prediction.items() if name not in reserved},
        texts=[*map(str, inputs), *(step["output"] for step in steps if step["kind"] == "output")],
    )


def facts_of_trace(trace: Trace) -> Facts:
    """Return the facts of the first run in a trace."""
    spans = sorted(trace.data.spans, key=lambda span: span.start_time_ns)
    run = next((span for span in spans if span.get_attribute("rlm.depth") == 0), None)
    if run is None:
        return Facts()
    turns = [span for span in spans if span.parent_id == run.span_id and span.get_attribute("kind")]
    kinds = [str(span.get_attribute("kind")) for span in turns]
    outputs = [(span.outputs or {}).get("output", "") for span in turns]
    printed = [str(output) for output, kind in zip(outputs, kinds, strict=True) if kind == "output"]
    inputs = [text if isinstance(text, str) else json.dumps(text) for text in (run.inputs or {}).values()]
    answers = {name: value for name, value in (run.outputs or {}).items() if name not in ATTACHED}
    usage = RunUsage.model_validate(run.get_attribute("rlm.usage") or {})
    return Facts(kinds, usage, answers, [*inputs, *printed], run.get_attribute("rlm.coverage"))


def _coverage(example: dspy.Example | None, steps: list[Any]) -> float | None:
    """Return the share of an example's texts that a run covered, if watched."""
    if example is None or not input_names(example) or not watching():
        return None
    sizes = Watch(dict(example.inputs().items())).sizes
    return share_covered(sizes, [Step.model_validate(step) for step in steps])


def _count(*kinds: str) -> Callable[[Facts], float | None]:
    """Return a function that counts the turns that ended in one of some ways; all turns if none is given."""

    def count(facts: Facts) -> float | None:
        if facts.kinds is None:
            return None
        return float(sum(not kinds or kind in kinds for kind in facts.kinds))

    return count


def _sub_calls(facts: Facts) -> float | None:
    if facts.usage == RunUsage():
        return None
    own, by_role = ("act", "extract", "fold"), facts.usage.by_role
    return float(sum(used.calls for role, used in by_role.items() if role.removeprefix("child.") not in own))


def _grounded(facts: Facts) -> float | None:
    """Return the share of the answer's texts and numbers that occur in what the run read."""
    texts = [_normal(text) for text in facts.texts]
    parts = [_normal(part) for part in _parts(jsonable(facts.answers)) if len(part.strip()) >= _SHORTEST_ANSWER]
    if not parts:
        return None
    return sum(any(part in text for text in texts) for part in parts) / len(parts)


def _parts(value: Any) -> list[str]:
    """Return the texts and numbers in JSON-like data."""
    if isinstance(value, dict | list):
        return [part for item in (value.values() if isinstance(value, dict) else value) for part in _parts(item)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()


ATTACHED = (HOW_IT_ENDED, "trajectory.json", "report.html")
"""The fields besides the output fields in the outputs of a run's span."""

turns = RunScorer(name="turns", measure=_count())
code_errors = RunScorer(name="code_errors", measure=_count("error", "no_code", "interpreter_lost"))
refused_submits = RunScorer(name="refused_submits", measure=_count("refused"))
sub_calls = RunScorer(name="sub_calls", measure=_sub_calls)
cost = RunScorer(name="cost", measure=lambda facts: facts.usage.cost)
grounded = RunScorer(name="grounded", measure=_grounded)
coverage = RunScorer(name="coverage", measure=lambda facts: facts.coverage)
"""Share of the inputs that was read by code, shown to the model or sent to sub-models; only inside `watched()`."""
ALL = (turns, code_errors, refused_submits, sub_calls, cost, grounded, coverage)
"""Every scorer."""
