"""Builds the outputs, usage and errors of a span that ends."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dspy
import mlflow
from mlflow.entities import SpanType

from rlm_dspy.events import BatchEvent, CellEvent, Event, LMEvent, RunEvent, ToolEvent, TurnEvent
from rlm_dspy.observe.coverage_shares import share_covered
from rlm_dspy.observe.formatting import all_calls, used
from rlm_dspy.observe.record import Record, describe_stop, record_of
from rlm_dspy.observe.report.page import report_html
from rlm_dspy.redaction import in_strings
from rlm_dspy.text import counted
from rlm_dspy.tracing._mlflow_compat import Attachment, SpanAttributeKey
from rlm_dspy.tracing.span_spec import MESSAGE_CHARS, REPEATED_CHARS, TEXT_CHARS, Told, failure, fenced
from rlm_dspy.trajectory import KINDS, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlm_dspy.tracing.payloads import Payloads
    from rlm_dspy.trajectory import SubCall

HOW_IT_ENDED = "how it ended"
"""What stands beside the output fields in the outputs of a run's span, beside its files."""


def of_event(payloads: Payloads, event: Event) -> Told:
    """Describe the result of a unit of a run."""
    told = Told()
    match event:
        case RunEvent():
            told = _run_ended(payloads, event)
        case TurnEvent(step=Step() as step):
            told = _turn_ended(payloads, event.turn or 0, step)
        case CellEvent():
            told = _cell_ended(payloads, event)
        case ToolEvent(error=None):
            told = Told(outputs=payloads.value(event.result))
        case BatchEvent():
            told = _batch_ended(payloads, event)
        case LMEvent():
            told = model_ended(payloads, event)
    return told


def ended(payloads: Payloads, _above: Any, outputs: Any) -> Told:
    """Describe the result of any other call."""
    return Told(outputs=payloads.value(outputs))


def module_ended(payloads: Payloads, above: Any, outputs: Any) -> Told:
    """Describe a module's result; `above` is its caller."""
    if not isinstance(above, TurnEvent) or not isinstance(outputs, dspy.Prediction):
        return ended(payloads, above, outputs)
    code = fenced(payloads.text(outputs.code or "", REPEATED_CHARS))
    return Told(outputs={"reasoning": payloads.text(outputs.reasoning or "", REPEATED_CHARS), "code": code})


def model_ended(payloads: Payloads, event: LMEvent) -> Told:
    """Describe a model's answer and its usage. A call that DSPy's cache answered used nothing."""
    if event.error is not None:
        return Told()
    usage, shown = event.usage, payloads.value(event.outputs, MESSAGE_CHARS)
    total = usage.input_tokens + usage.output_tokens
    if event.cached or (event.lm.cache and not total):
        name = f"{event.lm.model} (cached)" if event.run else ""
        return Told(name, outputs=shown, attributes={"cached": True})
    tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "total_tokens": total}
    if usage.cached_input_tokens:
        tokens["cache_read_input_tokens"] = usage.cached_input_tokens
    spent: dict[str, Any] = {SpanAttributeKey.CHAT_USAGE: tokens} if total else {}
    cost = event.price if usage.cost is None else usage.cost
    if cost is not None:  # left out, MLflow looks a price up by the model's name
        spent[SpanAttributeKey.LLM_COST] = {"total_cost": cost}
    return Told(outputs=shown, attributes=spent)


def execution_ended(payloads: Payloads, _above: Any, outputs: Any) -> Told:
    """Describe the output or submission of code that is not a unit of a run."""
    if isinstance(outputs, dspy.FinalOutput):
        return Told(outputs={"SUBMIT": payloads.value(outputs.output, REPEATED_CHARS)})
    printed = "\n".join(map(str, outputs)) if isinstance(outputs, list) else outputs
    return Told(outputs={"output": _printed(payloads, "" if printed is None else str(printed))})


def _printed(payloads: Payloads, text: str) -> str:
    return fenced(payloads.text(text, REPEATED_CHARS), "text") if text else "(no output)"


def _cell_ended(payloads: Payloads, event: CellEvent) -> Told:
    if event.kind == "submitted":
        return Told(outputs={"SUBMIT": payloads.value(event.submitted, REPEATED_CHARS)})
    if event.kind == "output":
        return Told(outputs={"output": _printed(payloads, event.output)})
    what = payloads.text(event.output, REPEATED_CHARS)
    return Told(events=(failure(event.kind, what),), failed=what)


def _batch_ended(payloads: Payloads, event: BatchEvent) -> Told:
    """Tell what sub-calls were answered: each answer, or why it failed."""
    if event.refused:
        why = payloads.text(event.refused, REPEATED_CHARS)
        return Told(outputs={"refused": why}, events=(failure("refused", why),), failed=why)
    answers = event.answers
    failures = [str(answer["error"]) for answer in answers if "error" in answer]
    shown = [f"failed: {answer['error']}" if "error" in answer else answer["value"] for answer in answers]
    told = payloads.text("\n".join(failures), REPEATED_CHARS)
    failed = f"{len(failures)} of {len(answers)} failed" if failures else ""
    return Told(
        outputs=payloads.value(shown if len(shown) != 1 else shown[0], REPEATED_CHARS),
        attributes={"calls": len(answers), "failures": len(failures)},
        events=(failure(failed, told),) if failures else (),
        failed=failed,
    )


def _run_ended(payloads: Payloads, event: RunEvent) -> Told:
    record, steps = record_of(event), event.outcome.steps
    summary, by_itself = _summary(record), event.error is None
    attributes = {"rlm.stop": record.stop, "rlm.turns": len(steps), "rlm.usage": payloads.value(record.usage)}
    fields = {}
    if by_itself:
        fields = {name: payloads.value(value, TEXT_CHARS) for name, value in event.outcome.outputs.items()}
        attributes["rlm.failed_turns"] = sum(step.failed for step in steps)
        if (share := share_covered(record.input_chars, record.trajectory)) is not None:
            attributes["rlm.coverage"] = round(share, 4)
        if record.usage.limit:
            attributes["rlm.limit"] = record.usage.limit
    files = {} if event.depth else attachments(payloads, record)
    is_failure = record.stop == "interrupted" or (event.depth > 0 and record.stop == "unanswered")
    failed = summary if is_failure else ""  # the parent of an unanswered child is told of an error
    return Told(outputs={**fields, HOW_IT_ENDED: summary, **files}, attributes=attributes, failed=failed)


def _summary(record: Record) -> str:
    """Return in words why a run ended and what it took."""
    usage, failed = record.usage, sum(step.failed for step in record.trajectory)
    calls = sum(1 for _ in all_calls(record.trajectory))
    took = [f"{counted(failed, 'turn')} failed"] if failed else []
    took += [counted(calls, "sub-call")] if calls else []
    if usage.seconds:
        took += [counted(usage.calls, "model call"), used(usage, usage.seconds)]
    took += [f"ended by {usage.limit}"] if usage.limit else []
    return "; ".join([describe_stop(record), ", ".join(part for part in took if part)])


def _turn_ended(payloads: Payloads, number: int, step: Step) -> Told:
    shown = {"reasoning": payloads.text(step.reasoning, TEXT_CHARS)} if step.reasoning else {}
    if step.code:
        shown["code"] = fenced(payloads.text(step.code, TEXT_CHARS))
    output = payloads.text(step.output, TEXT_CHARS)
    came_out: dict[str, Any] = {"output": fenced(output, "text")}
    if step.answer is not None:
        printed = payloads.text(step.printed, TEXT_CHARS)
        came_out = {"output": fenced(printed, "text")} if printed else {}
        came_out["SUBMIT"] = payloads.value(step.answer, TEXT_CHARS)
    if step.notice:
        came_out["told the model"] = step.notice
    failed = payloads.text(step.problem, REPEATED_CHARS) if step.failed else ""
    return Told(
        name=f"turn {number}" if step.kind == "output" else f"turn {number}: {KINDS[step.kind].label}",
        span_type=SpanType.CHAIN,
        inputs=shown,
        outputs=came_out,
        attributes={"kind": step.kind, "spent": payloads.value(step.spent)},
        events=(_turn_failure(payloads, step, output),) if failed else (),
        failed=failed,
    )


def _turn_failure(payloads: Payloads, step: Step, output: str) -> tuple[str, dict[str, Any]]:
    what = "error in the code" if step.kind == "error" else KINDS[step.kind].label
    code = {"code": payloads.text(step.code, REPEATED_CHARS)} if step.code else {}
    return failure(what, output, **code)


def reused(payloads: Payloads, call: SubCall) -> tuple[str, dict[str, Any]]:
    """Return the event of a sub-call that was not made, as it had been answered before."""
    return f"{call.name} answered before", {
        **{name: payloads.text(value, REPEATED_CHARS) for name, value in call.inputs.items()},
        "answer": payloads.text(call.output, REPEATED_CHARS),
    }


def attachments(payloads: Payloads, record: Record) -> dict[str, Made]:
    """Return the files of a run by their names: its record as JSON, and the report on it as a page."""
    return {
        "trajectory.json": Made("application/json", lambda: _hidden(payloads, record).as_json()),
        "report.html": Made("text/html", lambda: report_html(_hidden(payloads, record))),
    }


def _hidden(payloads: Payloads, record: Record) -> Record:
    """Return a record without secrets: looked for in its strings, before JSON or HTML write them otherwise."""
    return Record.model_validate(in_strings(json.loads(record.as_json()), payloads.hidden))


def keep_in_run(run_id: str, trace_id: str, outputs: Mapping[str, Any]) -> None:
    """Keep the files among a run's outputs as artifacts of a run of MLflow, whose page shows them."""
    for name, file in outputs.items():
        if isinstance(file, Made):
            text = file.content_bytes.decode("utf-8")
            mlflow.MlflowClient().log_text(run_id, text, f"{trace_id}/{name}")


class Made(Attachment):
    """A file of a trace that is made when it is stored, so not in the run's own time.

    Args:
        content_type: Its media type.
        make: Makes its text.
    """

    def __init__(self, content_type: str, make: Callable[[], str]) -> None:
        super().__init__(content_type=content_type, content_bytes=b"")
        self._make = make

    @cached_property
    def content_bytes(self) -> bytes:
        """The text, in UTF-8."""
        return self._make().encode("utf-8", "replace")
