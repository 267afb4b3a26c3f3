"""Defines `RLM` and its main loop: the model writes code, the REPL runs it, until the code calls SUBMIT."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Never

import dspy

from rlm_dspy import signatures
from rlm_dspy.budget.lm_events import observed
from rlm_dspy.budget.window_errors import is_too_long
from rlm_dspy.compute import Compute, answer_directly, replies_anew, vote
from rlm_dspy.concurrency.port import Awaiting, Blocking, Port, drive
from rlm_dspy.concurrency.wait_scope import blocking
from rlm_dspy.errors import LimitExceeded, RunEnded, briefly_shown
from rlm_dspy.grounding import Grounding
from rlm_dspy.limits import Limited
from rlm_dspy.loop.as_tool import AsTool
from rlm_dspy.loop.compaction import accommodate, make_room
from rlm_dspy.loop.extraction import extract
from rlm_dspy.loop.function_lm import as_lm
from rlm_dspy.loop.rebuild import rebuild, resumed
from rlm_dspy.loop.run_state import Run, run_event
from rlm_dspy.loop.turn import Turn
from rlm_dspy.loop.validation import (
    HasState,
    check_cache,
    check_factory,
    check_group,
    check_hook,
    check_limits,
    check_lms,
    check_names,
    check_unknown,
    open_paths,
)
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.prompt.query import Query
from rlm_dspy.repl.signature_reader import check_signature
from rlm_dspy.repl.tools import normalize_tools
from rlm_dspy.report.representation import ShowsItself, carry
from rlm_dspy.resume.resumable import Resumable
from rlm_dspy.sessions.session import HasSessions
from rlm_dspy.streaming.binding import HasStreamedOutputs
from rlm_dspy.streaming.delivery import Streaming
from rlm_dspy.subcalls.interface import Subs, make_subs
from rlm_dspy.subcalls.item import active_sub_call
from rlm_dspy.text import logger

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Self

    from rlm_dspy.approval.reviewer import OnCode, OnSubmit, OnTool
    from rlm_dspy.cache.sub_call_cache import SubCallCache
    from rlm_dspy.limits import Limits
    from rlm_dspy.report.representation import RunPrediction
    from rlm_dspy.subcalls.interface import Given
    from rlm_dspy.trajectory import Step

_MOST_REFUSALS = 12
"""Of one turn's messages."""
_logger = logger()


class RLM(ShowsItself, AsTool, HasSessions, HasStreamedOutputs, Resumable, HasState, Limited, dspy.Module):
    r"""A Recursive Language Model over a typed signature; replaces `dspy.RLM`.

    The inputs become variables of a Python REPL. The model writes a block of code at a time, sees what it
    prints, asks models about pieces, and ends with `SUBMIT(...)` (Zhang, Kraska, Khattab: Recursive Language
    Models, arXiv 2512.24601).

    Predictors that optimizers see: `act` (every turn), `query` (`llm_query`) and `subs.<name>` (declared subs).
    The LM of `act` also folds long conversations and reads the answer from a trajectory without one; the LM of
    `query` also answers the modules that are written in the REPL. A predictor without an LM uses the one
    configured at the call.

    The arguments are also attributes, to read and to set: a new value is validated and applies from the next call.
    So are the fields of `limits`: `rlm.max_iters = 5`.

    Args:
        signature: The inputs and outputs, e.g. `"context, question -> answer: str"`.
        max_iters: Short for `limits=Limits(max_iters=...)`; so are the next two.
        max_llm_calls: See `Limits`.
        max_output_chars: See `Limits`.
        verbose: Log every step at INFO on the logger `dspy.rlm_dspy`.
        tools: Functions or `dspy.Tool`s that code may call by name.
        sub_lm: The LM of all sub-calls: `llm_query`, subs, modules written in the REPL, the turns of child
            RLMs. Default: the one configured at the call. A predictor with its own LM keeps it. It may
            also be a function from prompt to answer (see `rlm_dspy.loop.function_lm.FunctionLM`).
        interpreter_factory: Returns the interpreter of each run. Default: the one of `dspy.settings`, else
            `rlm_dspy.interpreters.PythonInterpreter`.
        limits: The limits of a run.
        policy: The start state of `act`: the name or path of a saved policy; None for plain instructions;
            `"auto"` for the policy shipped for the LM configured now, if there is one.
        demos_per_run: The maximum number of demos of `act` that a run shows: those whose tasks are worded most
            like its own, chosen once per run without a model. Default: as `policy` says, else all.
        subs: Signatures and modules that code may call by name: `[Claims]` becomes the function `claims`, also
            `claims.map([...])`, and the predictor `subs.claims`. A dict gives names: `{"gist": "text -> gist"}`.
        cache: Whether a successful sub-call answers identical later ones: within a run and its children;
            with a `SubCallCache` also across runs; with False never.
        refuse_blind_submit: Refuse a SUBMIT once if no code has used an input yet and the model was not shown an
            input whole. An answer that the call writes out needs a turn before it that printed or asked a model.
        grounding: How the answer is to rest on the inputs; see `rlm_dspy.grounding.Grounding`.
        compute: One plain call for short inputs, votes, a cheap LM first; see `rlm_dspy.compute.Compute`.
        on_code: Called with the code of each turn before it runs, also those of children: None lets it run, a
            str refuses it and is what the model reads, a `RunInstead(code)` has other code run. It may be async,
            as the next two. A hook that raises ends the run; see `rlm_dspy.approval`.
        on_tool: Called with the name and the arguments of each call of a tool: None allows it, a str refuses it.
        on_submit: Called with the output fields of an answer: None accepts it, a str is the complaint that the
            model reads.

    Raises:
        TypeError: If an argument is of the wrong kind; the message names the right one.
        ValueError: If names clash, a limit is out of range, or the policy does not exist.

    Examples:
        >>> from rlm_dspy.testing import ScriptedLM
        >>> rlm = RLM("context, question -> answer: int", max_iters=10)
        >>> with dspy.context(lm=ScriptedLM(["```python\nSUBMIT(answer=context.count('a'))\n```"])):
        ...     rlm(context="banana", question="How many a's are there?").answer
        3
    """

    signature: Any
    tools: Any
    subs: Any
    sub_lm: Any
    interpreter_factory: Any
    cache: SubCallCache | bool
    grounding: Any
    compute: Any
    on_code: OnCode | None
    on_tool: OnTool | None
    on_submit: OnSubmit | None

    @briefly_shown()
    def __init__(
        self,
        signature: str | type[dspy.Signature],
        max_iters: int | None = None,
        max_llm_calls: int | None = None,
        max_output_chars: int | None = None,
        verbose: bool = False,
        tools: list[Callable[..., Any]] | None = None,
        sub_lm: dspy.BaseLM | Callable[[str], Any] | None = None,
        interpreter_factory: Callable[[], dspy.CodeInterpreter] | None = None,
        *,
        limits: Limits | None = None,
        policy: str | os.PathLike[str] | None = "auto",
        demos_per_run: int | None = None,
        subs: Given = None,
        cache: SubCallCache | bool = True,
        refuse_blind_submit: bool = True,
        grounding: Grounding | None = None,
        compute: Compute | None = None,
        on_code: OnCode | None = None,
        on_tool: OnTool | None = None,
        on_submit: OnSubmit | None = None,
        **unknown: Never,
    ) -> None:
        check_unknown(unknown, type(self))
        super().__init__()
        short = {"max_iters": max_iters, "max_llm_calls": max_llm_calls, "max_output_chars": max_output_chars}
        self.signature = signature
        self.limits = check_limits(limits, **short)
        self.verbose = verbose
        self.sub_lm = sub_lm
        self.tools = tools
        self.interpreter_factory = interpreter_factory
        self.act = Act(signatures.Act)
        self.query = Query(signatures.Query)
        self.subs = subs
        self.cache = cache
        self.refuse_blind_submit = refuse_blind_submit
        self.grounding = grounding
        self.compute = compute
        self.on_code = on_code
        self.on_tool = on_tool
        self.on_submit = on_submit
        chosen = signatures.policy_for(dspy.settings.lm) if policy == "auto" else policy
        if chosen is not None:
            self.act.load_state(signatures.load_policy(chosen))
        if demos_per_run is not None:
            self.demos_per_run = demos_per_run

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; it is validated like an argument, and applies from the next call on."""
        if name == "subs" and not isinstance(value, Subs):
            value = make_subs(value, self.signature.input_fields, self.tools)
        elif check := _CHECKS.get(name):
            value = check(value)
        settled = {**vars(self), name: value}
        if name in ("signature", "tools", "subs") and {"signature", "tools"} <= settled.keys():
            subs = settled["subs"].names() if "subs" in settled else ()
            check_names(settled["signature"], settled["tools"], subs)
        super().__setattr__(name, value)
        if name == "signature":
            self.__dict__["__doc__"] = value.instructions  # its description as a `dspy.Tool`

    @property
    def demos_per_run(self) -> int | None:
        """The maximum number of demos that a run shows; None for all."""
        return getattr(self.act, "demos_per_run", None)

    @demos_per_run.setter
    def demos_per_run(self, value: int | None) -> None:
        self.act.demos_per_run = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy all but the hooks, which may hold a terminal, a connection or a lock."""
        memo |= {id(hook): hook for hook in (self.on_code, self.on_tool, self.on_submit)}
        memo[id(self)] = copied = copy.copy(self)
        copied.__dict__.update(copy.deepcopy(copied.__dict__, memo))
        return copied

    def __getattr__(self, name: str) -> Any:
        """Raise an AttributeError; for a predictor of `dspy.RLM` it names what replaces it."""
        why = f"{type(self).__name__!r} object has no attribute {name!r}{_UPSTREAM_PREDICTORS.get(name, '')}"
        raise AttributeError(why, name=name, obj=self)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Run the module on the signature's inputs; `interpreter_factory=` applies to this call only.

        Every error of a started run has the partial prediction as `error.prediction`; the steps so far are also
        `error.trajectory`, and the usage `error.usage`.

        Returns:
            The output fields, typed; `trajectory` (a list of dicts with `reasoning`, `code`, `output` and the
            other fields of `Step`), `final_reasoning`, `stop`, `usage`, and `artifacts`: the files that code
            wrote below `output/` (see `rlm_dspy.artifacts`). An output field of yours takes precedence.
            `prediction.report(path)` writes the run as an HTML page (see `rlm_dspy.report.representation`).

            `stop` is `"submitted"`; or `"extracted"` if the turns ran out and a last call read the answer from
            the trajectory; or `"unanswered"` if that failed too: missing output fields are None then; or
            `"direct"` if one plain call answered (`Compute.direct_below`). With `Compute.votes`, `agreement` has
            the fields of `rlm_dspy.compute.Agreement`.

        Raises:
            InvalidInputs: If inputs are missing or unknown.
            dspy.CodeInterpreterError: If no interpreter can be started.
            dspy.LMError: If the model does not reply; `dspy.ContextWindowExceededError` if even the shortest first
                message does not fit its window.
        """
        with blocking(), Streaming(self):
            return drive(self._vote(Blocking(), inputs))

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Run like `forward`, on the running event loop; code runs in its own thread."""
        async with Streaming(self):
            return await self._vote(Awaiting(), inputs)

    async def _vote(self, port: Port, inputs: dict[str, Any]) -> RunPrediction:
        """Run once, or as often as `compute` says, each run with what the others left of the limits."""
        own = {f"rlm.{name}.lm": getattr(getattr(self, name), "lm", None) for name in ("act", "query")}
        check_lms({**own, "dspy.settings.lm": dspy.settings.lm})
        if self.compute.votes == 1:
            return await self._run(port, **inputs)

        async def run(number: int, limits: Limits) -> RunPrediction:
            member = self.child(self.interpreter_factory, self.signature)
            member.limits = limits
            with replies_anew(member, number):
                return await member._run(port, **inputs)  # noqa: SLF001 (a copy of this module)

        return await vote(self.compute, self.limits, list(self.signature.output_fields), run)

    async def _run(
        self,
        port: Port,
        /,
        *,
        interpreter_factory: Callable[[], dspy.CodeInterpreter] | None = None,
        **inputs: Any,
    ) -> RunPrediction:
        inputs = open_paths(self.signature, inputs)
        outer = active_sub_call.get()
        parent = outer.run if outer and isinstance(outer.run, Run) else None
        event, recorded = resumed(run_event(self, inputs), parent)
        with observed(event) as running:
            heard = running is not None
            run = Run(self, inputs, check_factory(interpreter_factory), parent, heard=heard, recorded=recorded)
            token = active_sub_call.set(None)
            try:
                if (direct := await self._answer_directly(port, run)) is not None:
                    return direct
                await port.run(run.open)
                if recorded:
                    await port.run(rebuild, run, recorded, Turn(self.act, run).execute, stop=run.stop_code)
                return await self._converse(port, run)
            except BaseException as error:
                run.end()
                carry(error, run.partial(error))
                raise
            finally:
                if running:
                    running.end(outcome=run.outcome or run.outcome_so_far())
                active_sub_call.reset(token)
                if outer:
                    outer.steps = [*outer.steps, *run.steps]
                    outer.stop, outer.final_reasoning = run.stop, run.final_reasoning
                await port.run(run.close)

    def child(
        self,
        interpreter_factory: Callable[[], dspy.CodeInterpreter] | None,
        signature: str | type[dspy.Signature],
        max_iters: int | None = None,
    ) -> RLM:
        """Return an RLM for a sub-call: a copy of this one with another signature and the given settings.

        Args:
            interpreter_factory: Returns its interpreters.
            signature: The inputs and outputs.
            max_iters: The maximum number of turns, if lower than this one's.
        """
        child = copy.copy(self)
        child.signature = signature
        child.interpreter_factory = interpreter_factory
        turns = min(max_iters or self.limits.max_iters, self.limits.max_iters)
        child.limits = replace(self.limits, max_iters=turns)
        child.compute = replace(self.compute, votes=1)
        child.history = []
        child.__dict__.pop("forward", None)  # an optimizer that records traces binds one temporarily
        return child

    async def _answer_directly(self, port: Port, run: Run) -> RunPrediction | None:
        """Return the answer of one plain call, if `compute` allows it for these inputs and it fits; else None."""
        below = self.compute.direct_below
        goes_on = run.session or (run.recorded and run.recorded.steps)  # one call does not read what was said
        if below is None or self.tools or self.subs.names() or goes_on:
            return None
        values = await answer_directly(port, run, below)
        if values is None or await run.reviewer.answer(port, run.stop_code, values) is not None:
            return None
        return run.finish("direct", values, "Answered by one plain call.")

    async def _converse(self, port: Port, run: Run) -> RunPrediction:
        is_last = run.turns_are_over
        try:
            while not is_last:
                is_last = run.budget.limit is not None
                step = await self._take_turn(port, run)
                run.keep(step)
                if step.answer is not None:
                    return run.finish("submitted", step.answer, step.reasoning)
        except LimitExceeded as error:
            if isinstance(error, RunEnded) or ((run.depth or run.budget.ledger.outer) and not run.steps):
                raise  # it is over, or a child or a run of a batch that could not start: there is no trajectory
            run.budget.limit = run.budget.limit or error.limit
        except dspy.LMError as error:
            if not is_too_long(error) or not run.steps:
                raise
        return await extract(self, port, run)

    async def _take_turn(self, port: Port, run: Run) -> Step:
        """Take a turn; if its messages are refused as too long, or for their content, change them and retry."""
        if run.conversation.is_full:
            await make_room(port, run)
        refusals = 0
        while True:
            try:
                turn = Turn(self.act, run, verbose=self.verbose)
                step: Step = await port.predict(turn, number=run.budget.turns + 1)
            except dspy.LMError as error:
                refusals += 1
                if refusals == _MOST_REFUSALS or not await accommodate(port, run, error):
                    raise
            else:
                return step


_UPSTREAM_PREDICTORS = {
    "generate_action": "; the predictor of the turns is `act`",
    "extract": "; the predictor that reads an answer from a trajectory is made for each call, with `act`'s LM",
}
"""What replaces the predictors of `dspy.RLM`, for the message of the AttributeError."""
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "signature": check_signature,
    "limits": check_limits,
    "tools": normalize_tools,
    "sub_lm": as_lm,
    "interpreter_factory": check_factory,
    "cache": check_cache,
    "grounding": partial(check_group, Grounding, "grounding", "Grounding(warn_below=0.1)"),
    "compute": partial(check_group, Compute, "compute", "Compute(votes=3)"),
    **{name: partial(check_hook, name) for name in ("on_code", "on_tool", "on_submit")},
}
"""Validators of attributes."""
