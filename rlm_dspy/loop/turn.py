"""Takes one turn: `act` writes a code block, the REPL runs it, and a `Step` records the result."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.budget.lm_info import text_of
from rlm_dspy.concurrency.port import Awaiting, Blocking, Port, drive
from rlm_dspy.errors import Pause, ReplyCut, ReplyWithheld
from rlm_dspy.events import CellEvent, TurnEvent, unit
from rlm_dspy.loop.hints import advice_for
from rlm_dspy.loop.repetition import NO_OUTPUT, repeated_turn
from rlm_dspy.prompt.adapter import ReplAdapter, search_block, written_reply
from rlm_dspy.repl.coercion import read_answer
from rlm_dspy.repl.value_codec import without_media_marks
from rlm_dspy.replies.code_blocks import does_nothing
from rlm_dspy.replies.copied_inputs import without_copied_inputs
from rlm_dspy.replies.joined_blocks import join_blocks
from rlm_dspy.replies.native_calls import codes_of_calls, unread_calls
from rlm_dspy.replies.repetitive_text import is_repetitive
from rlm_dspy.replies.reply_parser import Reply, read_reply
from rlm_dspy.replies.thinking import split_thinking
from rlm_dspy.text import clip, logger, sendable
from rlm_dspy.trajectory import Step, StepKind

if TYPE_CHECKING:
    from rlm_dspy.budget.ledger import Meter
    from rlm_dspy.loop.run_state import Run

_THINKING_CHARS = 4_000
_WARMER_TEMPERATURE = 0.7
_UNREAD_CALL = "Your tool call could not be read: its arguments are not valid JSON. Do not call a tool."
_logger = logger()


class Turn(dspy.Module):
    """One turn of a run. It is a module, so that DSPy's callbacks see each turn as a call.

    Args:
        act: The predictor that writes the code.
        run: The run that the turn belongs to; only read.
        verbose: Log the step at INFO.
    """

    def __init__(self, act: dspy.Predict, run: Run, *, verbose: bool = False) -> None:
        super().__init__()
        self._act = act
        self._run = run
        self._verbose = verbose

    def forward(self, number: int) -> Step:
        """Take turn `number` (the first is 1) and return its step."""
        return drive(self._take(Blocking(), number))

    async def aforward(self, number: int) -> Step:
        """Take turn `number` (the first is 1) and return its step."""
        return await self._take(Awaiting(), number)

    async def _take(self, port: Port, number: int) -> Step:
        with unit(TurnEvent(turn=number)) if self._run.heard else contextlib.nullcontext() as turn:
            step = await self._step(port)
            if turn:
                turn.end(step=step)
        if self._verbose:
            _logger.info("%s\n\n%s\n\n%s", step.reasoning, step.code, step.observation)
        return step

    async def _step(self, port: Port) -> Step:
        run = self._run
        self._started, self._before = time.monotonic(), run.ledger.totals()
        if run.recorded:
            self._before -= run.answers.paid_in_turn()
        reply = self._without_copies(await self._write(port))
        if reply.code:
            step = await self._run_code(port, reply)
        else:
            step = no_code(reply, run.submit_call)
        # An accepted answer ends the run: no model is shown the output, and nothing is reserved for another turn.
        is_answer = step.kind == "submitted"
        most = run.limits.max_output_chars if is_answer else run.conversation.output_chars
        output = clip(sendable(step.output), most)
        if reply.code and reply.notice:
            output = f"{output}\n({reply.notice})"
        facts: dict[str, Any] = {
            "output": output,
            "printed": clip(sendable(step.printed), most),
            **self._so_far(reply),
        }
        if run.watch:
            # The echo of SUBMIT is not output: it would count as the input that it repeats.
            facts |= {
                "read": (*run.watch.read("" if step.kind == "denied" else step.code), *run.watch.opened()),
                "shown": () if is_answer else run.watch.shown(output),
            }
        step = step.model_copy(update=facts)
        if is_answer:
            return step
        step = step.model_copy(update={"repeats": repeated_turn(step, run.steps)})
        return run.budget.ended(step, advice_for(step, run.submit_call, run.steps, run.inputs))

    def _so_far(self, reply: Reply) -> dict[str, Any]:
        """Return what the model thought, and what the turn has taken so far, by fields of `Step`."""
        ledger = self._run.ledger
        return {
            "thinking": clip(reply.thinking, _THINKING_CHARS),
            "seconds": time.monotonic() - self._started,
            "spent": ledger.totals() - self._before,
            "started": self._started - ledger.started,
        }

    async def _write(self, port: Port) -> Reply:
        """Return the model's reply; if it cannot be parsed, the received part."""
        run, started, budget = self._run, time.monotonic(), self._run.budget
        meter = None
        try:
            scope = run.metered("act", keeper=budget.keeper, input_tokens=budget.next_tokens)
            with scope as meter, budget.in_time(meter):
                action = await port.predict(
                    self._act, budget.seconds_for_reply(), **run.conversation.inputs, **self._warmer()
                )
        except dspy.AdapterParseError as error:
            empty = error.adapter_name == ReplAdapter.__name__  # it parses any text; DSPy rejects an empty one
            said = Reply("" if empty else sendable(error.lm_response), "", thinking=_thinking(meter))
            return _reply_apart(meter) or said
        except ReplyCut as error:
            return _cut_reply(error, _thinking(meter))
        finally:
            if meter is not None:
                budget.replied(meter.read_at_most, time.monotonic() - started)
                run.conversation.reported = (meter.read, len(run.conversation.trajectory))
        code = action.get("code") or ""  # a reply without choices is a prediction without fields
        if code.lstrip().startswith(("```", "~~~")):  # from an adapter that leaves the fence on
            code = read_reply(code).code
        said = Reply(sendable(action.get("reasoning") or ""), sendable(code), thinking=_thinking(meter))
        if not code:
            return _reply_apart(meter) or said
        if calls := codes_of_calls(_output(meter)):
            return replace(said, **join_blocks(dict.fromkeys([said.code, *calls]))._asdict())
        return replace(said, notice=_notice_of(meter, code))

    def _without_copies(self, reply: Reply) -> Reply:
        """Return a reply without the code that types an input in again; the model is told of it."""
        earlier = (step.code for step in (*self._run.past, *self._run.steps))
        code, names = without_copied_inputs(reply.code, self._run.environment.variables, earlier)
        if not names:
            return reply
        notice = f"{', '.join(names)}: set already, so your copy was left out. Use the variable."
        if does_nothing(code):
            return replace(reply, reasoning=written_reply(reply.reasoning, reply.code), code="", notice=notice)
        return replace(reply, code=code, notice=" ".join(filter(None, (notice, reply.notice))))

    def _warmer(self) -> dict[str, dict[str, float]]:
        """Return the sampling of a reply after a turn without code, or one that repeated another.

        Greedy decoding would repeat it once more. Empty if the LM is not greedy, or was given no temperature, so
        that it may refuse one.
        """
        last = self._run.steps[-1] if self._run.steps else None
        lost = last is not None and (last.repeats or last.kind == "no_code")
        greedy = self._run.lm is not None and self._run.lm.kwargs.get("temperature") == 0  # a replay has no LM
        return {"config": {"temperature": _WARMER_TEMPERATURE}} if lost and greedy else {}

    async def _run_code(self, port: Port, reply: Reply) -> Step:
        """Run the code for as long as it may, if the hooks agree. On an error, keep the partial turn."""
        run, reasoning, code = self._run, reply.reasoning, reply.code
        ran = code
        run.begin_cell()
        try:
            verdict = await run.reviewer.code(port, run.stop_code, code)
            if isinstance(verdict, str):
                return denied(reasoning, code, verdict)
            ran = verdict.code if verdict else code
            with run.in_time():
                step: Step = await port.run(self.execute, reasoning, ran, stop=run.stop_code)
            if step.answer is not None:
                complaint = await run.reviewer.answer(port, run.stop_code, step.answer)
                step = step if complaint is None else self._refused(step, [complaint])
        except BaseException as error:
            step = cut_short(error, reasoning, ran, clip(sendable(run.repl.printed), run.limits.max_output_chars))
            run.add(step.model_copy(update=run.calls_taken() | self._so_far(reply)))
            raise
        return replaced(step, code) if verdict else step

    def execute(self, reasoning: str, code: str) -> Step:
        """Run a block of code in the REPL; return its step without what the model is told about the turn."""
        run = self._run
        run.begin_cell()
        with unit(CellEvent(reasoning=reasoning, code=code)) if run.heard else contextlib.nullcontext() as cell:
            outcome = run.repl.execute(code)
            run.reviewer.check()
            if run.async_tools.error is not None:
                raise run.async_tools.error
            if cell:
                cell.end(kind=outcome.kind, output=outcome.output, submitted=outcome.submitted)
        output = f"{outcome.output}\n{run.stopped}" if run.stopped else outcome.output
        if outcome.kind != "submitted":
            output = output or NO_OUTPUT
        step = Step(reasoning=reasoning, code=code, output=output, kind=outcome.kind, **run.calls_taken())
        if not (run.repl.printed if outcome.kind == "error" else outcome.output) and not step.calls:
            run.silent.add(len(run.steps))
        if outcome.kind != "submitted":
            return step
        values, problems = read_answer(run.signature, outcome.submitted)
        values = without_media_marks(values)
        blind = "" if problems else run.blind_submit(code, step.calls)
        problems = problems or [blind] * bool(blind) or run.failures_in(values, step.calls)
        if not problems and not run.budget.limit:
            problems = run.grounded.unread(code, step.calls, run.steps)
        step = step.model_copy(update={"printed": outcome.output.rstrip()})
        if problems:
            search = search_block(run.conversation.environment) if blind and not step.printed else ""
            return self._refused(step, problems, f"For example:\n\n{search}" if search else "")
        return step.model_copy(update={"answer": values, "output": _after(step.printed, f"SUBMIT: {values!r}")})

    def _refused(self, step: Step, problems: list[str], fix: str = "") -> Step:
        """Return the step of a SUBMIT that is refused: it tells the model why, and what to do."""
        refusal = "\n".join(["SUBMIT was refused:", *(f"- {problem}" for problem in problems)])
        fix = fix or f"Fix this and call {self._run.submit_call} again."
        output = _after(step.printed, f"{refusal}\n{fix}")
        known = {"kind": "refused", "refusals": tuple(problems), "answer": None, "output": output}
        return step.model_copy(update=known)


def _after(printed: str, echo: str) -> str:
    """Return what SUBMIT says after what the code printed."""
    return f"{printed}\n{echo}" if printed else echo


def _cut_reply(error: ReplyCut, thinking: str) -> Reply:
    """Return the received part of a truncated reply, with a notice that says what was run and what to change."""
    reply = read_reply(sendable(error.partial), cut=True)
    ran = "Only its complete statements were run" if reply.code else "It has no complete code; nothing was run"
    if isinstance(error, ReplyWithheld):
        fix = "Do not quote texts."
    elif is_repetitive(error.partial):
        fix = "It said the same again and again. Print or compute a long value with code instead."
    else:
        fix = "Write a shorter reply, then continue." if error.too_long else "Write it again."
    return replace(reply, thinking=thinking, notice=f"Your reply {error.why}. {ran}. {fix}")


def _reply_apart(meter: Meter | None) -> Reply | None:
    """Return the reply of a model whose text holds no code, if the code stands in another field of its output.

    That is a native tool call, or a whole reply that a server took for thinking: it is empty but for that, was not
    cut, and ends with a block of code. A draft is followed by more thinking.
    """
    output = _output(meter)
    text = sendable(output.get("text") or "")
    if codes := codes_of_calls(output):
        return Reply(text, thinking=_thinking(meter), **join_blocks(codes)._asdict())
    if unread := unread_calls(output):
        return Reply("\n".join(filter(None, [text, unread])), "", thinking=_thinking(meter), notice=_UNREAD_CALL)
    thinking = (output.get("reasoning_content") or "").strip()
    if output.get("text") or not thinking.endswith(("```", "~~~")):
        return None
    reply = read_reply(sendable(thinking))
    return reply if reply.code else None


def _notice_of(meter: Meter | None, code: str) -> str:
    """Return what the model is told of its reply; an adapter keeps no more than its code."""
    text = text_of(meter.outputs[-1] if meter and meter.outputs else None)
    return read_reply(text).notice if "SUBMIT" in text and "SUBMIT" not in code else ""


def _output(meter: Meter | None) -> dict[str, Any]:
    """Return the LM's last output by its fields, as DSPy tells them; empty if it is text alone."""
    outputs = meter.outputs[-1] if meter is not None and meter.outputs else None
    return outputs[0] if outputs and isinstance(outputs[0], dict) else {}


def _thinking(meter: Meter | None) -> str:
    """Return what the model thought before its last reply, told apart by its provider or in its text."""
    apart = _output(meter).get("reasoning_content")
    in_text, _ = split_thinking(text_of(meter.outputs[-1] if meter and meter.outputs else None), in_turn=True)
    return sendable("\n".join(part for part in (apart, in_text) if part))


def denied(reasoning: str, code: str, why: str) -> Step:
    """Return the step of code that `on_code` refused."""
    output = f"Your code was refused and was not run: {why}"
    return Step(reasoning=reasoning, code=code, output=output, kind="denied", refusals=(why,))


def replaced(step: Step, code: str) -> Step:
    """Return the step of code that `on_code` had run instead of the model's, which is `code`."""
    output = f"(Your code was replaced before it ran: what ran is above.)\n{step.output}"
    return step.model_copy(update={"proposed": code, "output": output})


def cut_short(error: BaseException, reasoning: str, code: str, printed: str) -> Step:
    """Return the step of a turn whose code, or a hook, an error cut short."""
    is_paused = isinstance(error, Pause)
    why = "The run was paused" if is_paused else "The run was interrupted in this turn"
    output = _after(printed, f"{why}: {error}" if str(error) else f"{why}.")
    kind: StepKind = "paused" if is_paused else "error"
    return Step(reasoning=reasoning, code=code, output=output, kind=kind)


def no_code(reply: Reply, submit_call: str) -> Step:
    """Return the step of a reply that contained no Python: it tells the model what to write instead."""
    language = read_reply(reply.reasoning).other_language
    if reply.notice:
        problem = reply.notice
    elif language:
        problem = f"The block is marked {language!r}; only Python runs here."
    elif reply.reasoning:
        problem = "Your reply contains no code."
    elif reply.thinking:
        problem = "Your reply contains only thinking; code in it is not run. Think less, then reply."
    else:
        problem = "Your reply was empty."
    text = f"{problem} Write one ```python block. If you know the answer, call {submit_call} in it."
    return Step(reasoning=reply.reasoning, output=text, kind="no_code")
