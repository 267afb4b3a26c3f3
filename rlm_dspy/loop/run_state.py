"""Holds the state of one run. The module holds none, so threads can share it."""

from __future__ import annotations

import base64
import contextlib
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import dspy

from rlm_dspy.approval.reviewer import Reviewer
from rlm_dspy.budget.last_turn_reserve import Budget
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.lm_info import check_price
from rlm_dspy.budget.metered_lm import metered, meters_in_force
from rlm_dspy.concurrency.timeouts import Watchdog
from rlm_dspy.concurrency.wait_scope import cancelled_by
from rlm_dspy.coverage import WATCHED, Watch
from rlm_dspy.errors import LimitExceeded, RunEnded
from rlm_dspy.events import Outcome, RunEvent, StepEvent, emit
from rlm_dspy.grounding import RunGrounding, Seen
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.loop.context_window import Conversation
from rlm_dspy.loop.hints import blind_submit, submits_literals
from rlm_dspy.loop.validation import check_inputs
from rlm_dspy.prompt.environment import write_calls, write_environment
from rlm_dspy.repl.bootstrap import HOST_TOOL, READ_TOOL
from rlm_dspy.repl.defining_tool import HIDDEN, DefiningTool
from rlm_dspy.repl.session import Repl
from rlm_dspy.repl.tools import AsyncTools, ToolCalls, host_function
from rlm_dspy.report.representation import prediction_of
from rlm_dspy.resume.recorded_answers import RecordedAnswers
from rlm_dspy.sessions.state import calling_session, taken_session
from rlm_dspy.subcalls.dispatch import SubCalls, Tree
from rlm_dspy.subcalls.target import Callees, for_repl
from rlm_dspy.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from rlm_dspy.artifacts import Artifacts
    from rlm_dspy.budget.ledger import Meter
    from rlm_dspy.report.representation import RunPrediction
    from rlm_dspy.resume.journal import RecordedRun
    from rlm_dspy.signatures import Environment
    from rlm_dspy.subcalls.interface import Factory, Program
    from rlm_dspy.trajectory import Step, SubCall
    from rlm_dspy.usage import RunUsage

_SubCalls = TypeVar("_SubCalls", bound=SubCalls)
_MOMENT_SECONDS = 0.3
"""Seconds between the end of the sub-calls and the end of the code."""


class Run:
    """The state of one run: inputs, REPL, ledger, conversation, and the steps so far.

    Args:
        rlm: The called module.
        inputs: The inputs by name.
        interpreter_factory: The factory of this call; None for the module's, the configured or the default one.
        parent: The run whose sub-call this one is; None for a root. They share the ledger.
        heard: Whether there is a listener to its events.
        recorded: What an event log holds of the run, if it is resumed.

    Attributes:
        session: The session of which it is a call, if it is one; `past`: the steps of its earlier calls.
        depth: The number of runs above this one.
        watch: Tracks the parts of the inputs that are read, shown and sent; None if coverage is not watched.
        stopped: Why the code of this turn was stopped, if it was.
        recorded: What an event log holds of the run; None if it is new.
        turns_are_over: Whether the last turn has been taken.

    Raises:
        InvalidInputs: If the inputs do not fit the signature.
    """

    def __init__(
        self,
        rlm: Program,
        inputs: Mapping[str, Any],
        interpreter_factory: Factory | None,
        parent: Run | None = None,
        *,
        heard: bool = False,
        recorded: RecordedRun | None = None,
    ) -> None:
        self._rlm = rlm
        self.recorded, self.turns_are_over = recorded, False
        self._event = run_event(rlm, inputs)
        self.session = taken_session()
        self.signature, self.limits = rlm.signature, self._event.limits
        self.inputs = check_inputs(rlm.signature, inputs)
        self.heard = heard
        self.steps: list[Step] = []
        self.stop = self.final_reasoning = ""
        self.outcome: Outcome | None = None
        self.stopped: LimitExceeded | None = None
        self._sent_back = self._told_of_failures = False
        self.silent: set[int] = set()
        """The steps, from 0, whose code printed nothing and asked no model."""
        is_watched = dspy.settings.get(WATCHED) or rlm.grounding.warn_below is not None
        self.watch = Watch(self.inputs) if is_watched else None
        self.grounded = RunGrounding(rlm.grounding, self.watch, is_root=parent is None)
        self._share(parent)
        chosen = interpreter_factory or rlm.interpreter_factory or dspy.settings.get("interpreter_factory")
        self._factory: Factory = chosen or PythonInterpreter
        self._subs = for_repl(rlm.subs)
        self.repl = self._repl()
        self.past = list(self.session.steps if self.session else ())
        self.environment = self._environment(self._factory)
        self.conversation = Conversation(rlm.act, self.lm, self.limits, self.ledger, self.environment)
        self._begin(self.environment)
        tokens = self.conversation.most_tokens() if self.ledger.bounded else 0
        self.budget = Budget(self.ledger, self.limits, self.lm, tokens, child=self.depth > 0)
        if rlm.sub_lm is not None and self.limits.max_cost is not None:
            check_price(rlm.sub_lm, self.limits)
        if self.budget.limit:  # the first turn is the last, so tell the model
            self._begin(self.environment.model_copy(update={"turns": 1}))

    def _share(self, parent: Run | None) -> None:
        """Take the shared state of the tree from the parent, or make it for a root; choose the LM."""
        rlm = self._rlm
        own = rlm.act.lm or dspy.settings.lm
        self.depth: int = parent.depth + 1 if parent else 0
        whole = next((meter.ledger for meter in meters_in_force()[-1:]), None)
        self.ledger: Ledger = parent.ledger if parent else Ledger(self.limits, whole)
        self.tree: Tree = parent.tree if parent else (self.session.tree if self.session else Tree)(rlm.cache)
        self.async_tools: AsyncTools = parent.async_tools if parent else AsyncTools()
        if self.recorded and parent is None:
            self.recorded.journal.settle(self.ledger, (own, rlm.sub_lm, rlm.query.lm, dspy.settings.lm))
        decided = self.recorded.reviews.take if self.recorded else None
        self.reviewer: Reviewer = Reviewer(rlm, self.ledger, parent.reviewer if parent else None, decided)
        self.tool_calls = ToolCalls(self.ledger.started, recorded=self.answers.tool if self.recorded else None)
        self._folder = f"child-{next(self.tree.children)}/" if parent else ""
        self.act = rlm.act
        is_child = parent is not None and parent.act is rlm.act  # made by `RLM.child`, not a separate RLM
        self.lm = rlm.sub_lm or own if is_child else own
        """The LM of turns, summaries and the extraction."""

    def _repl(self) -> Repl:
        rlm = self._rlm
        tools = {name: host_function(tool, self._callable, self.tool_calls) for name, tool in rlm.tools.items()}
        defining = [name for name, tool in rlm.tools.items() if isinstance(tool, DefiningTool)]
        hidden = {HIDDEN + name: tools.pop(name) for name in defining}
        model = getattr(rlm.sub_lm or rlm.query.lm or dspy.settings.lm, "model", "")
        known = {"inputs": list(self.inputs), "subs": self._subs, "tools": list(tools), "model": model}
        known |= {"defining": defining, "hidden": HIDDEN}
        tools = {HOST_TOOL: self.subcalls.answer, READ_TOOL: self.tree.media.read, **tools, **hidden}
        factory, give_back = self.session.lending(self._factory) if self.session else (self._factory, None)
        return Repl(factory, tools, self.inputs, rlm.signature, known, self.tree.media, self._keep_file, give_back)

    def _callable(self, tool: dspy.Tool) -> dspy.Tool:
        """Return a tool as code calls it: `on_tool` reviews its calls, and an async one is awaited."""
        return self.async_tools.blocking(self.reviewer.reviewed(tool))

    def _keep_file(self, name: str, size: int, data: str | None, *, removed: bool = False) -> str:
        """Take a file that code wrote; return why it is not kept, else an empty text."""
        if removed:
            self.tree.artifacts.drop(self._folder + name)
            return ""
        content = None if data is None else base64.b64decode(data, validate=True)
        return self.tree.artifacts.keep(self._folder + name, content, size)

    @property
    def artifacts(self) -> Artifacts:
        """The files that the code of this run and of its children wrote so far."""
        return self.tree.artifacts.below(self._folder)

    def _environment(self, of: Factory | dspy.CodeInterpreter | None) -> Environment:
        """Return the first message, with the description from an interpreter or its factory."""
        rlm = self._rlm
        awaits = bool(getattr(of, "supports_await", False))  # optional, as the instructions are
        calls = write_calls(self._subs, children=self.depth < self.limits.max_depth, awaits=awaits)
        runtime = str(getattr(of, "execution_instructions", None) or "")
        return write_environment(rlm.signature, self.inputs, rlm.tools, self.limits, runtime, calls)

    def _begin(self, environment: Environment) -> None:
        """Set the first message; in a session that goes on, it follows the turns so far."""
        self.environment = self.conversation.environment = environment
        if self.session:
            first, steps = self.session.go_on(environment)
            self.conversation.environment, self.conversation.trajectory = first, Trajectory(steps=steps)
            self.conversation.after_fold = None if first is environment else environment

    @functools.cached_property
    def subcalls(self) -> SubCalls:
        """Answers the sub-calls of the run's code."""
        return self._subcalls_of(SubCalls)

    @functools.cached_property
    def answers(self) -> RecordedAnswers:
        """The answers in the log of a run that is resumed."""
        assert self.recorded is not None, "the run is new"
        return RecordedAnswers(self.recorded, self.tree.media)

    def _subcalls_of(self, kind: type[_SubCalls]) -> _SubCalls:
        make_child = functools.partial(self._rlm.child, self._factory)
        callees = Callees(self._rlm, self.depth, make_child, self._callable)
        in_log = self.answers if self.recorded else None
        return kind(self, callees, self.ledger, self.tree, self.inputs, in_log)

    def open(self) -> None:
        """Open the REPL. If only the interpreter, not its factory, has a description, add it to the first message.

        Raises:
            dspy.CodeInterpreterError: If no interpreter can be started.
            TypeError: If the factory returns something else, or an input cannot cross into this interpreter.
        """
        self.repl.open()
        environment = self.environment
        if not environment.runtime:
            environment = self._environment(self.repl.interpreter).model_copy(update={"turns": environment.turns})
        if self.session:
            self.session.opened(self.repl.interpreter)
        self._begin(environment)

    def fold(self, summary: Step, kept: tuple[Step, ...]) -> None:
        """Replace all turns but the kept ones by a summary in the prompt; `steps` keeps all of them."""
        self.steps.append(summary)
        emit(StepEvent(step=summary, kept=len(kept)))
        self.show([summary, *kept])

    def show(self, steps: Iterable[Step]) -> None:
        """Replace the steps that the model is shown."""
        self.conversation.show(steps)
        if self.ledger.bounded:
            self.budget.next_tokens = self.conversation.most_tokens()

    def metered(self, role: str, **how: Any) -> contextlib.AbstractContextManager[Meter]:
        """Return a scope that records the LM calls of this run in the ledger; see `metered_lm.metered`.

        The turns of a root are limited by number; those of a child count as sub-calls of the tree.
        """
        role = f"child.{role}" if self.depth else role
        return metered(self.ledger, role, counted=self.depth > 0, **how)

    def usage(self) -> RunUsage:
        """Return the usage of the tree; a root settles running requests as failed."""
        if not self.depth:
            self.ledger.give_up()
        return self.ledger.usage(self.budget.limit)

    @contextlib.contextmanager
    def in_time(self) -> Iterator[None]:
        """Stop the code in this scope at its time-out; that of a child also together with its parent's.

        First new sub-calls are refused and running ones fail, so that the code can keep its results;
        a moment later the code itself is interrupted.
        """
        self.stopped, budget, ledger = None, self.budget, self.ledger
        seconds = budget.seconds_for_code()
        with cancelled_by(ledger.cancellation):
            moment = min(_MOMENT_SECONDS, budget.seconds_kept / 4 or 1)
            watchdog = Watchdog(seconds, self._warn, self.repl.interrupt, moment=moment, clock=ledger.clock)
            stops = ledger.cancellation if budget.child else self.reviewer.ended
            with watchdog, stops.telling(lambda _: watchdog.trigger()):
                yield
        if watchdog.expired and not budget.child and budget.seconds_for_reply() != 0.0:
            ledger.reopen()

    def _warn(self) -> None:
        self.stopped = self.budget.out_of_time()
        if not self.budget.child:
            self.ledger.close(self.stopped, self.budget)

    def stop_code(self) -> None:
        """Stop the code for good. A cancelled run calls it until the code has ended."""
        self.end()
        self.repl.give_up()
        self.repl.interrupt()

    def end(self) -> None:
        """Refuse further calls."""
        if not self.budget.child:
            self.ledger.close(RunEnded("The run has ended."))

    def close(self) -> None:
        """Release the reservations of the run, and shut its interpreter down or give it back to the session."""
        if self.ledger.bounded:
            self.budget.close()
        if self.session:
            self.session.took(self)
        self.repl.close()

    def keep(self, step: Step) -> None:
        """Record the step of an ended turn; the model is shown it in the next one."""
        self.steps.append(step)
        self.conversation.trajectory = self.conversation.trajectory.add(step)

    def add(self, step: Step) -> None:
        """Record a step that no turn produced."""
        self.keep(step)
        emit(StepEvent(step=step))

    def begin_cell(self) -> None:
        """Start the code of a turn; calls belong to that turn from now on."""
        self.subcalls.begin()
        self.tool_calls.begin()
        self.repl.printed = ""

    def blind_submit(self, code: str, calls: Collection[SubCall]) -> str:
        """Return, once, why a SUBMIT is refused that no look at an input is behind; empty otherwise.

        An answer that is written out in the call needs an earlier turn that printed something or asked a model.
        """
        unseen = [variable.name for variable in self.conversation.environment.variables if variable.long]
        if not self._rlm.refuse_blind_submit or self._sent_back or not unseen or self.budget.limit:
            return ""
        silent = self.silent if submits_literals(code) else set()
        turns = [step for number, step in enumerate(self.steps) if number not in silent]
        codes = [step.code for step in (*self.past, *turns) if step.kind != "denied"]
        why = blind_submit(code, codes, self.inputs, unseen, asked=bool(calls))
        self._sent_back = bool(why)
        return why

    def failures_in(self, values: Mapping[str, Any], calls: Iterable[SubCall]) -> list[str]:
        """Return, once, which values hold a failed item of a batch as text: `str` and f-strings take any object.

        Not in the last turn, after which nothing can be all_sendable.

        Args:
            values: The submitted values by field.
            calls: The sub-calls of the turn.
        """
        made = [*calls, *(call for step in self.steps for call in step.calls)]
        marks = {f"<failed: {call.error_type}" for call in made if call.error}
        named = [name for name, value in values.items() if any(mark in repr(value) for mark in marks)]
        if not named or self._told_of_failures or self.budget.limit:
            return []
        self._told_of_failures = True
        fix = "Ask again for what is missing, or leave it out: [reply for reply in replies if reply]."
        return [f"{name}: it contains a failed item of a batch as text. {fix}" for name in named]

    def calls_taken(self) -> dict[str, Any]:
        """Return the calls of this turn's code so far, by fields of `Step`."""
        calls: dict[str, Any] = {"calls": self.subcalls.taken()} if self.subcalls.log else {}
        self.grounded.keep(item for _, _, item in self.subcalls.log)
        if (tools := self.tool_calls).calls:
            calls |= {"tool_calls": tuple(tools.calls), "tool_calls_left_out": tools.left_out}
        return calls

    @property
    def submit_call(self) -> str:
        """The call of SUBMIT in this run, for messages to the model."""
        return f"SUBMIT({', '.join(f'{name}=...' for name in self.signature.output_fields)})"

    def outcome_so_far(self, outputs: dict[str, Any] | None = None) -> Outcome:
        """Return the outcome of the run for listeners, with its outputs if it has ended normally."""
        steps = tuple(self.steps)
        return Outcome(self.stop, outputs or {}, self.usage(), self.final_reasoning, steps, self.artifacts)

    def finish(self, stop: str, answer: Mapping[str, Any], final_reasoning: str) -> RunPrediction:
        """Return the prediction of an ended run.

        Args:
            stop: Why it ended.
            answer: The values of the output fields by name; missing ones are None.
            final_reasoning: The text around the code that submitted; else how the answer was found, or why there
                is none.
        """
        self.stop, self.final_reasoning = stop, final_reasoning
        outcome = self.outcome_so_far({name: answer.get(name) for name in self.signature.output_fields})
        sources = self.grounded.sources(self.signature.output_fields, outcome.outputs, self._seen())
        self.outcome = replace(outcome, sources=sources)
        return prediction_of(replace(self._event, outcome=self.outcome))

    def _seen(self) -> Seen:
        variables = self.conversation.environment.variables
        return Seen(
            inputs=self.inputs,
            shown=[each.name for each in variables if not each.long or self.stop == "direct"],
            subs=self._rlm.subs.names(),
            steps=self.steps,
            submitted=self.stop == "submitted",
        )

    def partial(self, error: BaseException) -> RunPrediction:
        """Return what there is of a run that an error ends."""
        return prediction_of(replace(self._event, outcome=self.outcome_so_far(), error=error))


def run_event(rlm: Program, inputs: Mapping[str, Any]) -> RunEvent:
    """Return the event of a run that starts now."""
    session = calling_session()
    return RunEvent(
        name=type(rlm).__name__,
        signature=rlm.signature,
        inputs=inputs,
        session=session.id if session else "",
        limits=session.limits or rlm.limits if session else rlm.limits,
        lm=rlm.act.lm or dspy.settings.lm,
        sub_lm=rlm.sub_lm,
    )
