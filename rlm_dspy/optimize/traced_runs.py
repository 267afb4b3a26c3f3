"""Groups the `act` calls of a DSPy trace into runs: the root's and its children's."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import dspy

from rlm_dspy.prompt.adapter import Act
from rlm_dspy.signatures import Environment
from rlm_dspy.trajectory import Step, Trajectory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import JsonValue

    Call = tuple[dspy.Predict, Mapping[str, Any], dspy.Prediction]
    """A call in `dspy.settings.trace`: the predictor, its inputs and its outputs."""
    Trace: TypeAlias = Sequence[Call] | None


_SUBMIT_CHARS = 400


@dataclass(frozen=True)
class TracedRun:
    """A run reconstructed from its trace: every turn but the last with its output.

    Attributes:
        predictor: Its `act` predictor.
        environment: The first message of the run.
        steps: The turns before the last.
        reasoning: The reasoning of the last turn.
        code: The code of the last turn.
        nested: Whether it is a child: it ran inside a turn of another run.
    """

    predictor: Act
    environment: Environment
    steps: tuple[Step, ...]
    reasoning: str
    code: str
    nested: bool = False

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """All turns, including the last one, whose output the trace does not contain."""
        return (*self.steps, Step(reasoning=self.reasoning, code=self.code, kind="unknown"))

    @property
    def recovered_at(self) -> int | None:
        """The first failed turn that the next one repaired, counted from 0; None if there is none."""
        failed = [step.failed for step in self.steps] + [False]
        all_sendable = [at for at, (now, after) in enumerate(pairwise(failed)) if now and not after]
        return all_sendable[0] if all_sendable else None

    def goes_on_from(self, earlier: TracedRun) -> bool:
        """Whether this is a later state of the same run: it shows the last reply of `earlier`."""
        if self.predictor is not earlier.predictor or self.environment != earlier.environment:
            return False
        written = earlier.code.strip()
        return any(step.code.strip() == written for step in self.steps[len(earlier.steps) :])


def traced_runs(trace: Iterable[Call]) -> list[TracedRun]:
    """Return the runs in a trace, in the order in which they started.

    Args:
        trace: `dspy.settings.trace` of a call: predictor, inputs and outputs of each predictor call.
    """
    runs: list[tuple[TracedRun, int, int]] = []  # with the places of its first and its last call in the trace
    for at, (predictor, inputs, outputs) in enumerate(trace):
        if not isinstance(predictor, Act) or "code" not in outputs:  # a captured failure has no fields
            continue
        environment, steps = Environment.of(inputs["environment"]), steps_of(inputs["trajectory"])
        run = TracedRun(predictor, environment, steps, outputs.reasoning or "", outputs.code or "")
        earlier = [number for number, (other, _, _) in enumerate(runs) if run.goes_on_from(other)]
        if earlier:
            runs[earlier[-1]] = (run, runs[earlier[-1]][1], at)
        else:
            runs.append((run, at, at))
    calls = [(first, last) for _, first, last in runs]
    return [
        replace(run, nested=any(begin < first < last < end for begin, end in calls)) for run, first, last in runs
    ]


def ended_by_submit(run: TracedRun, prediction: object) -> TracedRun | None:
    """Return a run that shows how to end: as it is, if its last code calls `SUBMIT`.

    A run whose answer was read from its trajectory gets a last turn that submits this answer. For any other run
    the result is None: as a demo it would teach the model to go on.

    Args:
        run: The run.
        prediction: What the program returned; if the program is the RLM, it holds this run's trajectory.
    """
    if "SUBMIT(" in run.code:
        return run
    if not isinstance(prediction, dspy.Prediction):
        return None
    steps = [step for step in steps_of({"steps": prediction.get("trajectory") or []}) if step.kind != "folded"]
    is_of_run = bool(steps) and steps[-1].code.strip() == run.code.strip()
    values = {output.name: prediction.get(output.name) for output in run.environment.outputs}
    code = f"SUBMIT({', '.join(f'{name}={value!r}' for name, value in values.items())})"
    is_short = len(code) <= _SUBMIT_CHARS and all(map(_is_literal, values.values()))
    if prediction.get("stop") != "extracted" or not (is_of_run and values and is_short):
        return None
    return replace(run, steps=tuple(steps), reasoning="The outputs hold the answer.", code=code)


def _is_literal(value: object) -> bool:
    try:
        ast.literal_eval(repr(value))
    except (ValueError, SyntaxError):
        return False
    return True


def steps_of(trajectory: Trajectory | Mapping[str, JsonValue]) -> tuple[Step, ...]:
    """Return the steps of a trajectory or of its plain data; empty for anything else."""
    if isinstance(trajectory, Trajectory):
        return trajectory.steps
    try:
        return Trajectory.model_validate(trajectory or {}).steps
    except ValueError:
        return ()
