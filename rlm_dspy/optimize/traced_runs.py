"""Groups the `act` calls of a DSPy trace into runs: the root's and its children's."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from rlm_dspy.prompt.adapter import Act
from rlm_dspy.signatures import Environment
from rlm_dspy.trajectory import Step, Trajectory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import dspy
    from pydantic import JsonValue

    Call = tuple[dspy.Predict, Mapping[str, Any], dspy.Prediction]
    """A call in `dspy.settings.trace`: the predictor, its inputs and its outputs."""
    Trace: TypeAlias = Sequence[Call] | None


@dataclass(frozen=True)
class TracedRun:
    """A run reconstructed from its trace: every turn but the last with its output.

    Attributes:
        predictor: The `act` that wrote it.
        environment: The first message of the run.
        steps: The turns before the last.
        reasoning: The words of the last turn.
        code: The code of the last turn.
        nested: Whether it ran inside a turn of another run: a child.
    """

    predictor: Act
    environment: Environment
    steps: tuple[Step, ...]
    reasoning: str
    code: str
    nested: bool = False

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """All turns, with the last one, whose output the trace does not contain."""
        return (*self.steps, Step(reasoning=self.reasoning, code=self.code, kind="unknown"))

    @property
    def recovered_at(self) -> int | None:
        """The first failed turn that the next one repaired, counted from 0; None if there is none."""
        failed = [step.failed for step in self.steps] + [False]
        mended = [at for at, (now, after) in enumerate(pairwise(failed)) if now and not after]
        return mended[0] if mended else None


@dataclass
class _Open:
    """A run of which more turns may follow in the trace."""

    last: tuple[Act, Environment, tuple[Step, ...], dspy.Prediction]
    first_at: int
    last_at: int

    def continues_with(self, predictor: Act, environment: Environment, steps: tuple[Step, ...]) -> bool:
        """Whether a call is a later turn of this run: it was shown what this run's last call wrote."""
        mine, task, before, wrote = self.last
        if predictor is not mine or environment != task or len(steps) <= len(before):
            return False
        written = (wrote.code or "").strip()
        return any((step.code or "").strip() == written for step in steps[len(before) :])


def traced_runs(trace: Iterable[Call]) -> list[TracedRun]:
    """Return the runs in a trace, in the order in which they started.

    Args:
        trace: `dspy.settings.trace` of a call: predictor, inputs and outputs of each predictor call.
    """
    runs: list[_Open] = []
    for at, (predictor, inputs, outputs) in enumerate(trace):
        if not isinstance(predictor, Act) or "code" not in outputs:  # a captured failure has no fields
            continue
        environment, steps = Environment.of(inputs["environment"]), steps_of(inputs["trajectory"])
        ongoing = [run for run in runs if run.continues_with(predictor, environment, steps)]
        call = (predictor, environment, steps, outputs)
        if steps and ongoing:
            ongoing[-1].last, ongoing[-1].last_at = call, at
        else:
            runs.append(_Open(call, at, at))
    return [_closed(run, runs) for run in runs]


def steps_of(trajectory: Trajectory | Mapping[str, JsonValue]) -> tuple[Step, ...]:
    """Return the steps of a trajectory, also of one that is plain data; none if it is neither."""
    if isinstance(trajectory, Trajectory):
        return trajectory.steps
    try:
        return Trajectory.model_validate(trajectory or {}).steps
    except ValueError:
        return ()


def _closed(run: _Open, runs: list[_Open]) -> TracedRun:
    predictor, environment, steps, wrote = run.last
    nested = any(other.first_at < run.first_at < run.last_at < other.last_at for other in runs)
    return TracedRun(predictor, environment, steps, wrote.reasoning or "", wrote.code or "", nested)
