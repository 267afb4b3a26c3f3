"""Runs of any shape in small windows: nothing raises, requests fit, and what code submits is the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.trajectory import Step, Trajectory
from tests.loop.test_window import told
from tests.playing import begins, block, fields
from tests.window_server import WindowServer, serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages

VALUES = ("s", "s" * 50_000, list(range(500)), {f"key {n}": "v" * 50 for n in range(100)}, "日本語" * 5_000, None)
ANSWERS = {str: ("'v'", "v"), int: ("3", "3"), list[str]: ("['a']", '["a"]')}
TYPES = list(ANSWERS)
STEPS = Trajectory(steps=(Step(code="print(1)", output="1" * 500, reasoning="r"),))


@dataclass(frozen=True)
class Shape:
    """A run: what it is given and what its model does.

    Attributes:
        known: How the window becomes known: `given`, `lm` or `learned`.
        notes: The length of each field's description.
        optimized: The length of the instructions of `act`.
        talk: The length of the text beside each block.
        submits: Whether the model submits after its turns.
    """

    window: int
    known: str
    inputs: int
    outputs: int
    notes: int
    task: str
    tools: int
    subs: int
    demos: int
    optimized: int
    turns: int
    printed: int
    talk: int
    submits: bool

    def signature(self) -> type[dspy.Signature]:
        """Return the signature of the run."""
        note = "n" * self.notes
        inputs = {f"input_{n}": (Any, dspy.InputField(desc=note)) for n in range(self.inputs)}
        outputs = {f"out_{n}": (TYPES[n % len(TYPES)], dspy.OutputField(desc=note)) for n in range(self.outputs)}
        made: type[dspy.Signature] = dspy.Signature({**inputs, **outputs}, self.task)
        return made

    def rlm(self) -> RLM:
        """Return the program."""
        limits = Limits(
            max_iters=self.turns + 2, max_context_tokens=self.window if self.known == "given" else None
        )
        subs: dict[str, Any] = {f"sub_{n}": "text, topic -> score: int" for n in range(self.subs)}
        tools = [tool_of(n) for n in range(self.tools)]
        rlm = RLM(self.signature(), tools=tools, subs=subs, policy=None, limits=limits)
        rlm.act.signature = rlm.act.signature.with_instructions("Do it. " * (self.optimized // 7 or 1))
        demo = {"trajectory": STEPS, "reasoning": "r", "code": "print(1)"}
        rlm.act.demos = [{"environment": f"demo {n} " * 100, **demo} for n in range(self.demos)]
        return rlm

    def model(self) -> Callable[[Messages], str]:
        """Return what the model does: it prints, then submits, and answers whatever else it is asked."""
        code, words = (
            {f"out_{n}": ANSWERS[TYPES[n % len(TYPES)]][k] for n in range(self.outputs)} for k in (0, 1)
        )
        submit = f"SUBMIT({', '.join(f'{name}={value}' for name, value in code.items())})"
        turns = iter(range(self.turns if self.submits else self.turns + 2))

        def reply(messages: Messages) -> str:
            if not any(map(begins, messages)):
                return fields(summary="Found: 7.", **words)
            turn = next(turns, None)
            written = submit if turn is None else f"print('word {turn} ' * {self.printed // 7})"
            return block(written, "x" * self.talk)

        return reply


def tool_of(number: int) -> Callable[[str, int], list[str]]:
    """Return a tool with a long description."""

    def tool(query: str, k: int = 5) -> list[str]:
        return [query] * k

    tool.__name__, tool.__doc__ = f"tool_{number}", "Look it up. " * 20
    return tool


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


SHAPES = st.builds(
    Shape,
    window=some(4_096, 8_192, 32_768),
    known=some("given", "lm", "learned"),
    inputs=some(1, 5, 20),
    outputs=some(1, 5),
    notes=some(0, 200),
    task=some("Find it.", "Find it. " * 500, "Part.\n\n" * 800),
    tools=some(0, 10, 60),
    subs=some(0, 15),
    demos=some(0, 6),
    optimized=some(20, 9_000),
    turns=some(0, 1, 5),
    printed=some(10, 50_000),
    talk=some(5, 3_000),
    submits=st.booleans(),
)
WIDE: dict[str, Any] = {
    "inputs": 20,
    "notes": 200,
    "task": "Part.\n\n" * 800,
    "tools": 60,
    "subs": 15,
    "demos": 6,
    "optimized": 9_000,
}
TASK_ALONE: dict[str, Any] = {**dict.fromkeys(("notes", "tools", "subs", "demos"), 0), "task": "Part.\n\n" * 800}
TASK_ALONE |= {"inputs": 1, "outputs": 1, "optimized": 20}
LONG: dict[str, Any] = {"turns": 5, "printed": 50_000, "talk": 3_000}


@example(Shape(window=4_096, known="given", outputs=5, submits=True, **WIDE, **LONG))
@example(Shape(window=4_096, known="learned", outputs=5, submits=True, **WIDE, **LONG))
@example(Shape(window=4_096, known="lm", outputs=5, submits=False, **WIDE, **LONG))
@example(Shape(window=4_096, known="learned", submits=False, turns=0, printed=10, talk=5, **TASK_ALONE))
@example(Shape(window=2_048, known="lm", outputs=1, submits=False, **WIDE, **LONG))
@given(SHAPES)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_run_of_any_shape_ends_in_a_small_window_with_its_answer(shape: Shape) -> None:
    server = WindowServer(shape.model(), shape.window, told)
    inputs = {f"input_{n}": VALUES[n % len(VALUES)] for n in range(shape.inputs)}
    with serving(server):
        lm = server.lm(max_tokens=200)
        if shape.known == "lm":
            lm.context_window = shape.window
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            prediction = shape.rlm()(**inputs)
    assert prediction.stop == ("submitted" if shape.submits else "extracted")
    assert prediction.out_0 == "v"
    refused = sum(request.refused for request in server.requests)
    assert refused <= (2 if shape.known == "learned" else 0)
