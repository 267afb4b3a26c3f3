"""The state of one run. It lives as long as the call; the module holds none, so it serves many threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.arguments import check_inputs, host_function
from rlm_dspy.cache import SubCallCache
from rlm_dspy.callees import Callees, for_repl
from rlm_dspy.children import Guard
from rlm_dspy.coverage import watch_over
from rlm_dspy.environment import write_calls, write_environment
from rlm_dspy.interpreters import resolve_factory
from rlm_dspy.limits import Ledger
from rlm_dspy.prelude import HOST_TOOL
from rlm_dspy.repl import Repl
from rlm_dspy.subcalls import SubCalls, Tree
from rlm_dspy.trajectory import Trajectory, clip

if TYPE_CHECKING:
    from rlm_dspy.rlm import RLM
    from rlm_dspy.trajectory import Step

_TRANSCRIPT_CHARS = 12_000


class Run:
    """One run: its inputs, its REPL, its ledger, and the steps so far.

    Args:
        rlm: The module that is called.
        inputs: The inputs by name.
        interpreter_factory: The factory of this call, or None for the module's, the configured or the default.

        parent: The run whose sub-call this one is; None for a root. They share the ledger.

    Attributes:
        depth: How many runs are above this one.

    Raises:
        InvalidInputs: If the inputs do not fit the signature.
    """

    subcalls_type: type[SubCalls] = SubCalls
    """What answers the sub-calls of the run's code."""

    def __init__(
        self, rlm: RLM, inputs: dict[str, Any], interpreter_factory: Any, parent: Run | None = None
    ) -> None:
        self.depth: int = parent.depth + 1 if parent else 0
        self.signature = rlm.signature
        self.limits = rlm.limits
        self.ledger: Ledger = parent.ledger if parent else Ledger(rlm.limits)
        self.tree: Tree = parent.tree if parent else Tree(_cache_of(rlm.cache))
        self.trajectory = Trajectory()
        self.steps: list[Step] = []
        self.stop = ""
        inputs = check_inputs(rlm.signature, inputs)
        self.watch = watch_over(inputs)
        factory = resolve_factory(interpreter_factory or rlm.interpreter_factory)
        callees = Callees(rlm, self.depth, lambda *args, **options: rlm.child(factory, *args, **options))
        self.subcalls = self.subcalls_type(
            self, callees.find, self.ledger, self.tree, rlm.sub_lm, inputs, guard=Guard(inputs)
        )
        tools = {name: host_function(tool) for name, tool in rlm.tools.items()}
        subs = for_repl(rlm.subs)
        known = {"inputs": list(inputs), "subs": subs, "tools": list(tools)}
        self.repl = Repl(factory, {HOST_TOOL: self.subcalls.tool(), **tools}, inputs, rlm.signature, known)
        runtime = str(getattr(factory, "execution_instructions", ""))  # optional in DSPy's protocol
        calls = write_calls(subs, children=self.depth < rlm.limits.max_depth, awaits="await" in runtime)
        self.environment = write_environment(rlm.signature, inputs, rlm.tools, rlm.limits, runtime, calls)

    def usage(self) -> dict[str, Any]:
        """Return what the tree has spent so far, as `Prediction.usage` holds it."""
        return {**self.ledger.usage(), **self.tree.usage()}

    def role(self, name: str) -> str:
        """Return the name under which model calls of this run are entered into the ledger."""
        return f"child.{name}" if self.depth else name

    def add(self, step: Step) -> None:
        """Keep the step of a turn that has ended."""
        self.steps.append(step)
        self.trajectory = self.trajectory.add(step)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return one dict a step, as `Prediction.trajectory` holds them."""
        return [step.model_dump() for step in self.steps]

    @property
    def submit_call(self) -> str:
        """How SUBMIT is called in this run, for messages to the model."""
        return f"SUBMIT({', '.join(f'{name}=...' for name in self.signature.output_fields)})"

    def transcript(self) -> str:
        """Return the session as text: the environment, and each step shortened so that all of them fit."""
        share = max(200, _TRANSCRIPT_CHARS // max(1, len(self.trajectory)))
        steps = (clip(f"{s.reasoning}\n>>> {s.code}\n{s.output}", share) for s in self.trajectory.steps)
        return "\n\n".join([self.environment, *steps])

    def finish(self, stop: str, answer: dict[str, Any], final_reasoning: str) -> dspy.Prediction:
        """Return the prediction of a run that has ended.

        Args:
            stop: Why it ended.
            answer: The output fields' values by name; one that is left out is None.
            final_reasoning: The model's last words.
        """
        self.stop = stop
        report = {
            "stop": stop,
            "usage": self.usage(),
            "trajectory": self.as_dicts(),
            "final_reasoning": final_reasoning,
        }
        outputs = {name: answer.get(name) for name in self.signature.output_fields}
        return dspy.Prediction(**outputs, **{name: value for name, value in report.items() if name not in outputs})


def _cache_of(given: SubCallCache | bool) -> SubCallCache | None:
    """Return the cache of a root run: the one that was given, or one of its own."""
    return given if isinstance(given, SubCallCache) else SubCallCache() if given else None
