"""A user's program, for type checkers: what they know of an RLM and of what it returns. It is not run.

The fields of the signature are `Any`: Python has no type for "a prediction with the fields of this class", and
DSPy has none for its signatures. Annotate what you read: `year: int = prediction.year`.
"""

from typing import Any, assert_type

import dspy

from rlm_dspy import RLM, Files, Limits, RunPrediction, SubCallCache, Text
from rlm_dspy.artifacts import Artifacts
from rlm_dspy.events import Event, Listener, TurnEvent
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.optimize import Comparison, TrajectoryFewShot, promote
from rlm_dspy.testing import ScriptedLM


class Codes(Listener):
    """A listener."""

    def on_event(self, event: Event) -> None:
        if isinstance(event, TurnEvent):
            assert_type(event.turn, int | None)


rlm = RLM(
    "context, question -> year: int",
    subs={"gist": "text -> gist"},
    limits=Limits(max_iters=8, max_cost=0.5),
    cache=SubCallCache("answers.db"),
    interpreter_factory=lambda: PythonInterpreter(packages=["sklearn"]),
)
assert_type(rlm, RLM)
rlm.max_iters = 5
RLM("context -> year: int", limits=8)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Limits(max_iter=8)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

with dspy.context(lm=ScriptedLM(["```python\nSUBMIT(year=2026)\n```"]), callbacks=[Codes()]):
    prediction = rlm(context=Text.open("report.pdf"), question="When?")
assert_type(prediction, RunPrediction)
assert_type(prediction.stop, str)
assert_type(prediction.trajectory, list[dict[str, Any]])
assert_type(prediction.usage, dict[str, Any])
assert_type(prediction.artifacts, Artifacts)
year: int = prediction.year
prediction.report("run.html")


async def later() -> None:
    """Await a run."""
    assert_type(await rlm.acall(context=Files.open("folder"), question="When?"), RunPrediction)


def right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """Return whether the year is right."""
    return bool(example.year == prediction.year)


better = TrajectoryFewShot(metric=right).compile(rlm, trainset=[])
assert_type(promote(better, rlm, [], right, path="policy.json", name="years"), Comparison)
