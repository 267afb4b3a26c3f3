"""Builds the outputs, usage and errors of a span that ends."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dspy
import mlflow
from mlflow.entities import SpanType

from rlm_dspy.artifacts import FOLDER
from rlm_dspy.budget.lm_events import answered
from rlm_dspy.events import BatchEvent, CellEvent, LMEvent, ReviewEvent, RunEvent, ToolEvent, TurnEvent
from rlm_dspy.redaction import in_strings
from rlm_dspy.report.coverage_shares import share_covered
from rlm_dspy.report.formatting import all_calls, used
from rlm_dspy.report.record import Record, cut_short, describe_stop, record_of
from rlm_dspy.report.write_report import report_html
from rlm_dspy.text import counted
from rlm_dspy.tracing._mlflow_compat import Attachment, SpanAttributeKey
from rlm_dspy.tracing.span_spec import (
    HOW_IT_ENDED,
    MESSAGE_CHARS,
    REPEATED_CHARS,
    TEXT_CHARS,
    SpanContent,
    failure,
    fenced,
)
from rlm_dspy.trajectory import KINDS, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlm_dspy.artifacts import Artifacts
    from rlm_dspy.events import Event
    from rlm_dspy.tracing.payloads import Payloads
    from rlm_dspy.trajectory import SubCall


def of_event(payloads: Payloads, event: Event) -> SpanContent:
    """Describe the result of a unit of a run. A failed unit gets only a name; a failed run also gets its steps."""
    content = SpanContent()
    match event:
        case RunEvent():
            content = _run_ended(payloads, event)
        case TurnEvent(error=BaseException() as error):
            content = SpanContent(name=f"turn {event.turn}: {cut_short(error)['stop']}")
        case _ if event.error is not None:
            pass
        case TurnEvent(step=Step() as step):
            content = _turn_ended(payloads, event.turn or 0, step)
        case ReviewEvent():
            content = _review_ended(payloads, event)
        case CellEvent():
            content = _cell_ended(payloads, event)
        case ToolEvent():
            content = SpanContent(outputs=payloads.value(event.result))
        case BatchEvent():
            content = _batch_ended(payloads, event)
        case LMEvent():
            content = _model_ended(payloads, event)
    return content


def returned(
    payloads: Payloads, event: Event | None, above: Event | None, outputs: Any, error: BaseException | None
) -> SpanContent:
    """Describe the result of a DSPy call.

    Args:
        payloads: Writes the values.
        event: The event of its start, if it is like a unit of a run.
        above: The unit that made it, if any.
        outputs: What it returned.
        error: Its exception.
    """
    match event:
        case LMEvent():
            return of_event(payloads, answered(event, outputs, error))
        case ToolEvent():
            return of_event(payloads, replace(event, result=outputs, error=error))
        case CellEvent():
            return of_event(payloads, replace(event, error=error, **_of_code(outputs)))
    if error is not None:
        return SpanContent()
    if isinstance(above, TurnEvent) and isinstance(outputs, dspy.Prediction):  # of `act`
        outputs = {"reasoning": outputs.reasoning or "", "code": fenced(outputs.code or "")}
        return SpanContent(outputs=payloads.value(outputs, REPEATED_CHARS))
    return SpanContent(outputs=payloads.value(outputs))


def _of_code(outputs: Any) -> dict[str, Any]:
    """Return the fields of a cell's end event from an interpreter's result."""
    if isinstance(outputs, dspy.FinalOutput):
        return {"kind": "submitted", "submitted": outputs.output}
    return {"output": "\n".join(map(str, outputs)) if isinstance(outputs, list) else str(outputs or "")}


def _model_ended(payloads: Payloads, event: LMEvent) -> SpanContent:
    """Describe a model's outputs and usage. A call answered by DSPy's cache used nothing."""
    usage, shown = event.usage, payloads.value(event.outputs, MESSAGE_CHARS)
    total = usage.input_tokens + usage.output_tokens
    if event.cached or (event.lm.cache and not total):
        name = f"{event.lm.model} (cached)" if event.run else ""
        return SpanContent(name, outputs=shown, attributes={"cached": True})
    tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "total_tokens": total}
    if usage.cached_input_tokens:
        tokens["cache_read_input_tokens"] = usage.cached_input_tokens
    spent: dict[str, Any] = {SpanAttributeKey.CHAT_USAGE: tokens} if total else {}
    cost = event.price if usage.cost is None else usage.cost
    if cost is not None:  # without it, MLflow looks up a price by the model's name
        spent[SpanAttributeKey.LLM_COST] = {"total_cost": cost}
    return SpanContent(outputs=shown, attributes=spent)


def _cell_ended(payloads: Payloads, event: CellEvent) -> SpanContent:
    if event.kind == "submitted":
        return SpanContent(outputs={"SUBMIT": payloads.value(event.submitted, REPEATED_CHARS)})
    output = payloads.text(event.output, REPEATED_CHARS)
    if event.kind == "output":
        return SpanContent(outputs={"output": fenced(output, "text") or "(no output)"})
    return SpanContent(events=(failure(event.kind, output),), failed=output)


def _review_ended(payloads: Payloads, event: ReviewEvent) -> SpanContent:
    if event.run_instead:
        code = fenced(payloads.text(event.run_instead, TEXT_CHARS))
        return SpanContent(f"{event.hook}: other code", outputs={"run instead": code})
    if event.refused:
        return SpanContent(f"{event.hook}: refused", outputs={"refused": payloads.text(event.refused, TEXT_CHARS)})
    return SpanContent(outputs={"agreed": True})


def _batch_ended(payloads: Payloads, event: BatchEvent) -> SpanContent:
    """Describe the results of sub-calls: each answer, or its error."""
    if event.refused:
        why = payloads.text(event.refused, REPEATED_CHARS)
        return SpanContent(outputs={"refused": why}, events=(failure("refused", why),), failed=why)
    answers = event.answers
    failures = [str(answer["error"]) for answer in answers if "error" in answer]
    shown = [f"failed: {answer['error']}" if "error" in answer else answer["value"] for answer in answers]
    failed = f"{len(failures)} of {len(answers)} failed" if failures else ""
    why = payloads.text("\n".join(failures), REPEATED_CHARS)
    return SpanContent(
        outputs=payloads.value(shown if len(shown) != 1 else shown[0], REPEATED_CHARS),
        attributes={"calls": len(answers), "failures": len(failures)},
        events=(failure(failed, why),) if failures else (),
        failed=failed,
    )


def _run_ended(payloads: Payloads, event: RunEvent) -> SpanContent:
    record = record_of(event)
    failed_turns, share = sum(step.failed for step in record.trajectory), None
    attributes = {
        "rlm.stop": record.stop,
        "rlm.turns": len(record.trajectory),
        "rlm.failed_turns": failed_turns,
        "rlm.usage": payloads.value(record.usage),
    }
    if (share := share_covered(record.input_chars, record.trajectory)) is not None:
        attributes["rlm.coverage"] = round(share, 4)
    if record.sources:
        plain = {name: [place.model_dump() for place in places] for name, places in record.sources.items()}
        attributes["rlm.sources"] = payloads.value(plain)
    if record.usage.limit:
        attributes["rlm.limit"] = record.usage.limit
    fields = {} if event.error else event.outcome.outputs
    shown = {name: payloads.value(value, TEXT_CHARS) for name, value in fields.items()}
    summary = _summary(record, failed_turns)
    if event.resumed:
        summary += "; resumed: the turns before are in the trace with the same rlm.run"
    shown[HOW_IT_ENDED] = summary
    # The parent of an unanswered child gets an error.
    is_failure = record.stop == "interrupted" or (event.depth > 0 and record.stop == "unanswered")
    files = {} if event.depth else attachments(payloads, record) | written(payloads, event.outcome.artifacts)
    return SpanContent(outputs={**shown, **files}, attributes=attributes, failed=summary if is_failure else "")


def _summary(record: Record, failed: int) -> str:
    """Return as text why a run ended and what it used."""
    usage, calls = record.usage, sum(1 for _ in all_calls(record.trajectory))
    took = [
        f"{counted(failed, 'turn')} failed" if failed else "",
        counted(calls, "sub-call") if calls else "",
        f"{counted(usage.calls, 'model call')}, {used(usage, usage.seconds)}" if usage.seconds else "",
        f"ended by {usage.limit}" if usage.limit else "",
    ]
    return "; ".join([describe_stop(record), ", ".join(filter(None, took))])


def _turn_ended(payloads: Payloads, number: int, step: Step) -> SpanContent:
    inputs = {"reasoning": payloads.text(step.reasoning, TEXT_CHARS)} if step.reasoning else {}
    if step.code:
        inputs["code"] = fenced(payloads.text(step.code, TEXT_CHARS))
    printed = payloads.text(step.output if step.answer is None else step.printed, TEXT_CHARS)
    outputs: dict[str, Any] = {"output": fenced(printed, "text")} if printed or step.answer is None else {}
    if step.answer is not None:
        outputs["SUBMIT"] = payloads.value(step.answer, TEXT_CHARS)
    if step.notice:
        outputs["told the model"] = step.notice
    failed, label = payloads.text(step.problem, REPEATED_CHARS) if step.failed else "", KINDS[step.kind].label
    what = "error in the code" if step.kind == "error" else label
    code = {"code": payloads.text(step.code, REPEATED_CHARS)} if step.code else {}
    return SpanContent(
        name=f"turn {number}" if step.kind == "output" else f"turn {number}: {label}",
        span_type=SpanType.CHAIN,
        inputs=inputs,
        outputs=outputs,
        attributes={"kind": step.kind, "spent": payloads.value(step.spent)},
        events=(failure(what, printed, **code),) if failed else (),
        failed=failed,
    )


def reused(payloads: Payloads, call: SubCall) -> tuple[str, dict[str, Any]]:
    """Return the event of a sub-call that the cache answered."""
    return f"{call.name} answered before", {
        **{name: payloads.text(value, REPEATED_CHARS) for name, value in call.inputs.items()},
        "answer": payloads.text(call.output, REPEATED_CHARS),
    }


def attachments(payloads: Payloads, record: Record) -> dict[str, Made]:
    """Return the files of a run by name: its record as JSON and its report as HTML."""
    return {
        "trajectory.json": Made("application/json", lambda: _hidden(payloads, record).as_json()),
        "report.html": Made("text/html", lambda: report_html(_hidden(payloads, record))),
    }


def written(payloads: Payloads, artifacts: Artifacts) -> dict[str, Attachment]:
    """Return the files that a run wrote, by their path under `output/`, without those that hold a known secret."""
    return {
        f"{FOLDER}/{name}": Attachment(content_type=artifact.media_type, content_bytes=artifact.data)
        for name, artifact in artifacts.items()
        if not payloads.has_secret(artifact.data)
    }


def _hidden(payloads: Payloads, record: Record) -> Record:
    """Return a record with redacted strings, before they are escaped in JSON or HTML."""
    return Record.model_validate(in_strings(json.loads(record.as_json()), payloads.hidden))


def keep_in_run(run_id: str, trace_id: str, outputs: Mapping[str, Any]) -> None:
    """Log the files in a run's outputs as artifacts of an MLflow run, whose page shows them."""
    for name, file in outputs.items():
        if isinstance(file, Attachment):
            with TemporaryDirectory() as folder:
                path = Path(folder, PurePosixPath(name).name)
                path.write_bytes(file.content_bytes)
                mlflow.MlflowClient().log_artifact(run_id, str(path), str(PurePosixPath(trace_id, name).parent))


class Made(Attachment):
    """A file of a trace that is built when it is stored, not during the run.

    Args:
        content_type: Its media type.
        make: Returns its text.
    """

    def __init__(self, content_type: str, make: Callable[[], str]) -> None:
        super().__init__(content_type=content_type, content_bytes=b"")
        self._make = make

    @cached_property
    def content_bytes(self) -> bytes:
        """The text, in UTF-8."""
        return self._make().encode("utf-8", "replace")
