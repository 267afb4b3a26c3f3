"""Holds the state of one run. The module holds none, so threads can share it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.budget.last_turn_reserve import TRANSCRIPT_CHARS, Budget
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.lm_info import check_price, tokens_at_most
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.cache.sub_call_cache import SubCallCache
from rlm_dspy.concurrency.timeouts import Watchdog
from rlm_dspy.concurrency.wait_scope import cancelled_by
from rlm_dspy.coverage.tracker import watch_over
from rlm_dspy.errors import LimitExceeded
from rlm_dspy.events import Outcome, RunEvent, StepEvent, emit
from rlm_dspy.interpreters import resolve_factory
from rlm_dspy.loop.context_window import Room
from rlm_dspy.loop.validation import check_inputs
from rlm_dspy.prompt.adapter import messages_of
from rlm_dspy.prompt.environment import write_calls, write_environment
from rlm_dspy.repl.bootstrap import HOST_TOOL
from rlm_dspy.repl.session import Repl, execution_instructions
from rlm_dspy.repl.tool_call_log import ToolCalls
from rlm_dspy.repl.tools import AsyncTools, host_function
from rlm_dspy.subcalls.child import Guard
from rlm_dspy.subcalls.dispatch import SubCalls, Tree
from rlm_dspy.subcalls.registry import Callees, for_repl
from rlm_dspy.text import fitted
from rlm_dspy.trajectory import Trajectory, without_media_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rlm_dspy.budget.metering import Meter
    from rlm_dspy.signatures import Environment
    from rlm_dspy.subcalls.interface import Program
    from rlm_dspy.trajectory import Step
    from rlm_dspy.usage import RunUsage

HISTORY = "history"
"""The variable that holds the turns once the conversation was folded."""
CHARS_PER_TOKEN = 3
_MOMENT_SECONDS = 0.3
"""Between the end of the sub-calls and that of the code."""


class Run:
    """The state of one run: its inputs, its REPL, its ledger, and the steps so far.

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
        self,
        rlm: Program,
        inputs: Mapping[str, Any],
        interpreter_factory: Callable[[], dspy.CodeInterpreter] | None,
        parent: Run | None = None,
    ) -> None:
        self.depth: int = parent.depth + 1 if parent else 0
        self.signature = rlm.signature
        self.limits = rlm.limits
        self.ledger: Ledger = parent.ledger if parent else Ledger(rlm.limits)
        self.tree: Tree = parent.tree if parent else Tree(_cache_of(rlm.cache))
        self.trajectory = Trajectory()
        self.steps: list[Step] = []
        self.stop = self.final_reasoning = ""
        self.outcome: Outcome | None = None
        self.stopped: LimitExceeded | None = None
        """Why the code of this turn was stopped, if it was."""
        self.async_tools: AsyncTools = parent.async_tools if parent else AsyncTools()
        inputs = check_inputs(rlm.signature, inputs)
        self.watch = watch_over(inputs)
        factory = resolve_factory(interpreter_factory or rlm.interpreter_factory)

        def child(*args: Any, **options: Any) -> dspy.Module:
            return rlm.child(factory, *args, **options)

        in_threads = {name: self.async_tools.blocking(tool) for name, tool in rlm.tools.items()}
        callees = Callees(rlm, self.depth, child, in_threads)
        self.subcalls = self.subcalls_type(
            self, callees.find, self.ledger, self.tree, _sub_lm_of(rlm), inputs, guard=Guard(inputs)
        )
        self.tool_calls = ToolCalls(self.ledger.started)
        tools = {name: host_function(tool, self.async_tools, self.tool_calls) for name, tool in rlm.tools.items()}
        subs = for_repl(rlm.subs)
        asked = rlm.sub_lm or rlm.query.lm or dspy.settings.lm
        known = {"inputs": list(inputs), "subs": subs, "tools": list(tools), "model": getattr(asked, "model", "")}
        self.repl = Repl(
            factory, {HOST_TOOL: self.subcalls.tool(), **tools}, inputs, rlm.signature, known, self.tree.media
        )

        def environment(of: Callable[[], dspy.CodeInterpreter] | dspy.CodeInterpreter) -> Environment:
            awaits = bool(getattr(of, "supports_await", False))  # optional, as the instructions are
            calls = write_calls(subs, children=self.depth < rlm.limits.max_depth, awaits=awaits)
            runtime = execution_instructions(of)
            return write_environment(rlm.signature, inputs, rlm.tools, rlm.limits, runtime, calls)

        self._environment = environment
        self.environment = environment(factory)
        self.act = rlm.act
        own = rlm.act.lm or dspy.settings.lm
        is_child = parent is not None and parent.act is rlm.act  # made by `RLM.child`, and not an RLM of its own
        self.lm = rlm.sub_lm or own if is_child else own
        """Who takes the turns, folds them, and reads the answer from them."""
        self.room = Room(self)
        self._demos: list[dict[str, Any]] | None = None
        self.context_used = (0, 0)
        """The tokens that the last turn's messages had, as reported, and the steps that were among them."""
        first = tokens_at_most(None, self._messages(Trajectory())) if self.ledger.bounded else 0
        self.budget = Budget(self.ledger, rlm.limits, self.lm, first, child=self.depth > 0)
        if rlm.sub_lm is not None:
            check_price(rlm.sub_lm, rlm.limits)
        if self.budget.limit:  # the first turn is the last, and must be told so
            self.environment = self.environment.model_copy(update={"turns": 1})

    def open(self) -> None:
        """Open the REPL. What only its interpreter says of itself, and not what makes it, is told as well.

        Raises:
            dspy.CodeInterpreterError: If no interpreter can be started.
            TypeError: If the factory returns something else, or an input cannot cross into this interpreter.
        """
        self.repl.open()
        if not self.environment.runtime:
            told = self._environment(self.repl.interpreter)
            self.environment = told.model_copy(update={"turns": self.environment.turns})

    def context_tokens(self) -> float:
        """Return about how many tokens the next turn's messages have, from those that were reported last."""
        reported, steps = self.context_used
        known = steps if reported else 0
        new = self.trajectory.steps[known:]
        chars = sum(len(step.reasoning) + len(step.code) + len(step.observation) for step in new)
        first = 0 if reported else self.message_chars(Trajectory())
        return reported + (chars + first) / CHARS_PER_TOKEN

    def _messages(self, trajectory: Trajectory) -> list[dict[str, str]]:
        return messages_of(self.act, self.environment, trajectory, self._demos)

    def message_chars(self, trajectory: Trajectory | None = None) -> int:
        """Return how many characters the messages of the next turn have, or would have after other turns."""
        messages = self._messages(self.trajectory if trajectory is None else trajectory)
        return sum(len(message["content"]) for message in messages)

    @property
    def turn_inputs(self) -> dict[str, Any]:
        """The inputs of `act` in the next turn."""
        given: dict[str, Any] = {} if self._demos is None else {"demos": self._demos}
        if self.lm is not (self.act.lm or dspy.settings.lm):
            given["lm"] = self.lm
        return {"environment": self.environment, "trajectory": self.trajectory, **given}

    def leave_out_demos(self) -> None:
        """Show no demos from now on, to save room."""
        self._demos = []

    def keep_history(self) -> str:
        """Put the turns so far into the REPL as a list of dicts; return the name of the variable."""
        turns = [step for step in self.steps if step.kind != "folded"]
        entries = [
            {"turn": number, "reasoning": step.reasoning, "code": step.code, "output": step.output}
            for number, step in enumerate(turns, 1)
        ]
        return self.repl.keep(HISTORY, entries)

    def fold(self, account: Step, kept: tuple[Step, ...]) -> None:
        """Replace all turns but the kept ones by a summary in the prompt; `steps` keeps all of them."""
        self.steps.append(account)
        emit(StepEvent(step=account))
        self.show([account, *kept])

    def show(self, steps: list[Step]) -> None:
        """Show the model these steps from now on, instead of those before."""
        self.trajectory = Trajectory(steps=tuple(steps))
        self.context_used = (0, 0)
        if self.ledger.bounded:
            self.budget.next_tokens = tokens_at_most(None, self._messages(self.trajectory))

    def metered(self, role: str, **how: Any) -> contextlib.AbstractContextManager[Meter]:
        """Record the LM calls of this run in the ledger in a scope; see `metered_lm.metered`.

        A root's turns are limited by their number; those of a child are taken from the sub-calls of the tree.
        """
        role = f"child.{role}" if self.depth else role
        return metered(self.ledger, role, counted=self.depth > 0, **how)

    def usage(self) -> RunUsage:
        """Return what the tree has spent; a root gives up what is under way."""
        if not self.depth:
            self.ledger.give_up(self.ledger.closed or LimitExceeded("The run has ended."))
        return self.tree.counted_in(self.ledger.usage(self.budget.limit))

    @contextlib.contextmanager
    def stopping(self) -> Iterator[Callable[[], None]]:
        """Stop the code in this scope when its time is over, or when the yielded function is called.

        First nothing more is asked and sub-calls under way count as failed, so that the code can keep what it has;
        a moment later the code itself is interrupted. A child's code is also stopped with that of its parent.
        """
        ledger, budget = self.ledger, self.budget

        self.stopped = None

        def warn() -> None:
            self.stopped = budget.out_of_time()
            if not budget.child:
                ledger.close(self.stopped, budget)

        def stop() -> None:
            self.end()
            self.repl.give_up()
            watchdog.trigger()

        watchdog = Watchdog(
            budget.seconds_for_code(),
            warn,
            self.repl.interrupt,
            moment=min(_MOMENT_SECONDS, budget.seconds_kept / 4 or 1),
        )
        with_parent = ledger.cancellation.telling(lambda _: watchdog.trigger())
        with (
            watchdog,
            with_parent if budget.child else contextlib.nullcontext(),
            cancelled_by(ledger.cancellation),
        ):
            yield stop
        if watchdog.expired and not budget.child and budget.seconds_for_reply() != 0.0:
            ledger.reopen()

    def end(self) -> None:
        """Make no more calls."""
        if not self.budget.child:
            self.ledger.close(LimitExceeded("The run has ended."))

    def keep(self, step: Step) -> None:
        """Record the step of a turn that has ended."""
        self.steps.append(step)
        self.trajectory = self.trajectory.add(step)

    def add(self, step: Step) -> None:
        """Record a step that no turn made."""
        self.keep(step)
        emit(StepEvent(step=step))

    def begin_cell(self) -> None:
        """Start the code of a turn: its calls belong to that turn from now on."""
        self.subcalls.begin()
        self.tool_calls.begin()

    def calls_taken(self) -> dict[str, Any]:
        """Return the calls that the code of this turn has made so far, by the fields of `Step`."""
        return {"calls": self.subcalls.taken(), **self.tool_calls.taken()}

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return one dict for each step, as in `Prediction.trajectory`."""
        return [step.model_dump() for step in self.steps]

    @property
    def submit_call(self) -> str:
        """How SUBMIT is called in this run, for messages to the model."""
        return f"SUBMIT({', '.join(f'{name}=...' for name in self.signature.output_fields)})"

    def transcript(self, chars: float) -> str:
        """Return the session as text of about this many characters: the environment, then the steps."""
        most = int(min(chars, len(str(self.environment)) + TRANSCRIPT_CHARS))
        environment = fitted(self.environment.parts, max(most - TRANSCRIPT_CHARS, most // 3))
        steps = [f"{step.reasoning}\n>>> {step.code}\n{step.output}" for step in self.trajectory.steps]
        room = min(TRANSCRIPT_CHARS, most - sum(map(len, environment)))
        return str(without_media_marks("\n\n".join([*environment, *fitted(steps, room)])))

    def outcome_so_far(self, outputs: dict[str, Any] | None = None) -> Outcome:
        """Return the outcome of the run for listeners, with its outputs if it has ended normally."""
        return Outcome(self.stop, outputs or {}, self.usage(), self.final_reasoning, tuple(self.steps))

    def finish(self, stop: str, answer: Mapping[str, Any], final_reasoning: str) -> dspy.Prediction:
        """Return the prediction of a run that has ended.

        Args:
            stop: Why it ended.
            answer: The output fields' values by name; one that is left out is None.
            final_reasoning: The model's last words.
        """
        self.stop, self.final_reasoning = stop, final_reasoning
        outputs = {name: answer.get(name) for name in self.signature.output_fields}
        self.outcome = self.outcome_so_far(outputs)
        report = {
            "stop": stop,
            "usage": self.outcome.usage.model_dump(),
            "trajectory": self.as_dicts(),
            "final_reasoning": final_reasoning,
        }
        others = {name: value for name, value in report.items() if name not in outputs}
        return dspy.Prediction(outputs | others)  # by keyword, an output named `base` would be lost


def run_event(rlm: Program, inputs: Mapping[str, Any]) -> RunEvent:
    """Return the event of the start of a run."""
    return RunEvent(
        name=type(rlm).__name__,
        signature=rlm.signature,
        inputs=inputs,
        limits=rlm.limits,
        lm=rlm.act.lm or dspy.settings.lm,
        sub_lm=rlm.sub_lm,
    )


def _sub_lm_of(rlm: Program) -> Any:
    """Return the LM of what code asks that has none of its own; None for the one in force, if there is one."""
    if rlm.sub_lm is not None or dspy.settings.lm is not None:
        return rlm.sub_lm
    return rlm.query.lm or rlm.act.lm


def _cache_of(given: SubCallCache | bool) -> SubCallCache | None:
    """Return the cache of a root run: the one that was given, or one of its own."""
    return given if isinstance(given, SubCallCache) else SubCallCache() if given else None
