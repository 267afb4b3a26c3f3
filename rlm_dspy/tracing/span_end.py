"""What a span gets when it ends: what came out, what was used, what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
from mlflow.entities import SpanType
from mlflow.tracing.constant import SpanAttributeKey

from rlm_dspy.budget.lm_info import price_of
from rlm_dspy.budget.metering import meters_in_force, reported
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.observe.coverage_shares import share_covered
from rlm_dspy.observe.formatting import all_calls, used
from rlm_dspy.observe.record import describe_stop
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.text import counted
from rlm_dspy.tracing.artifacts import attachments, record_cut_short, record_of
from rlm_dspy.tracing.span_spec import MESSAGE_CHARS, REPEATED_CHARS, TEXT_CHARS, RunSpans, Told, failure, fenced
from rlm_dspy.trajectory import KINDS, Step

if TYPE_CHECKING:
    from rlm_dspy.observe.record import Record
    from rlm_dspy.tracing.payloads import Payloads
    from rlm_dspy.trajectory import SubCall

HOW_IT_ENDED = "how it ended"
"""What stands beside the output fields in the outputs of a run's span, beside its files."""


def ended(payloads: Payloads, _call: Any, outputs: Any, exception: BaseException | None) -> Told:
    """Tell what came of a call that has no form of its own."""
    return Told(outputs=None if exception else payloads.value(outputs))


def module_ended(payloads: Payloads, call: Any, outputs: Any, exception: BaseException | None) -> Told:
    """Tell what a module gave."""
    if isinstance(call.instance, RLM):
        return _run_ended(payloads, call.instance, call.run, outputs, exception)
    if isinstance(outputs, Step):
        return _turn_ended(payloads, call.run.turn, outputs)
    if isinstance(call.instance, Act) and exception is None:
        code = fenced(payloads.text(outputs.code or "", REPEATED_CHARS))
        return Told(outputs={"reasoning": payloads.text(outputs.reasoning or "", REPEATED_CHARS), "code": code})
    return ended(payloads, call, outputs, exception)


def model_ended(payloads: Payloads, call: Any, outputs: Any, exception: BaseException | None) -> Told:
    """Tell what a model answered, and what it used. A call that DSPy's cache answered used nothing."""
    if exception is not None:
        return Told()
    told = reported(outputs)
    tokens = {"input_tokens": told["input_tokens"], "output_tokens": told["output_tokens"]}
    cached = told["cached"] or (bool(call.instance.cache) and not any(tokens.values()))
    shown = payloads.value(outputs, MESSAGE_CHARS)
    if cached:
        name = f"{call.instance.model} (cached)" if call.run is not None else ""
        return Told(name, outputs=shown, attributes={"cached": True})
    tokens["total_tokens"] = sum(tokens.values())
    if told["cached_input_tokens"]:
        tokens["cache_read_input_tokens"] = told["cached_input_tokens"]
    spent: dict[str, Any] = {SpanAttributeKey.CHAT_USAGE: tokens} if tokens["total_tokens"] else {}
    if (cost := _cost(call.instance, told)) is not None:  # left out, MLflow looks a price up by the model's name
        spent[SpanAttributeKey.LLM_COST] = {"total_cost": cost}
    return Told(outputs=shown, attributes=spent)


def execution_ended(payloads: Payloads, _call: Any, outputs: Any, exception: BaseException | None) -> Told:
    """Tell what code printed or submitted."""
    if exception is not None:
        return Told()
    if isinstance(outputs, dspy.FinalOutput):
        return Told(outputs={"SUBMIT": payloads.value(outputs.output, REPEATED_CHARS)})
    printed = "\n".join(map(str, outputs)) if isinstance(outputs, list) else outputs
    text = "(no output)" if printed is None else fenced(payloads.text(str(printed), REPEATED_CHARS), "text")
    return Told(outputs={"output": text})


def host_call_ended(payloads: Payloads, call: Any, outputs: Any, exception: BaseException | None) -> Told:
    """Tell what the host answered; of sub-calls, each answer or why it failed."""
    if exception is not None or not isinstance(outputs, dict) or not outputs.keys() & {"answers", "refused"}:
        return ended(payloads, call, outputs, exception)
    if "refused" in outputs:
        why = payloads.text(outputs["refused"], REPEATED_CHARS)
        return Told(outputs={"refused": why}, events=(failure("refused", why),), failed=why)
    answers = outputs["answers"]
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


def reused(payloads: Payloads, call: SubCall) -> tuple[str, dict[str, Any]]:
    """Return the event of a sub-call that was not made, as it had been answered before."""
    return f"{call.name} answered before", {
        **{name: payloads.text(value, REPEATED_CHARS) for name, value in call.inputs.items()},
        "answer": payloads.text(call.output, REPEATED_CHARS),
    }


def _turn_failure(payloads: Payloads, step: Step, output: str) -> tuple[str, dict[str, Any]]:
    what = "error in the code" if step.kind == "error" else KINDS[step.kind].label
    code = {"code": payloads.text(step.code, REPEATED_CHARS)} if step.code else {}
    return failure(what, output, **code)


def _cost(lm: Any, told: dict[str, Any]) -> float | None:
    """Return what a call cost: as the LM says, else by the price that is known or was given to the run."""
    if told["cost"] is not None:
        cost: float = told["cost"]
        return cost
    prices = next((meter.ledger.limits.prices for meter in meters_in_force()), None)
    known = price_of(lm, prices) if prices is not None else None
    return known.of(told) if known is not None else None


def _run_ended(payloads: Payloads, rlm: RLM, run: RunSpans, outputs: Any, exception: BaseException | None) -> Told:
    if exception is not None:
        return _run_cut_short(payloads, rlm, run, exception)
    record = record_of(rlm, run.inputs, outputs)
    fields = {name: payloads.value(outputs.get(name), TEXT_CHARS) for name in rlm.signature.output_fields}
    attributes = {
        "rlm.stop": record.stop,
        "rlm.turns": len(record.trajectory),
        "rlm.failed_turns": sum(step.failed for step in record.trajectory),
        "rlm.usage": payloads.value(record.usage),
    }
    if (share := share_covered(record.input_chars, record.trajectory)) is not None:
        attributes["rlm.coverage"] = round(share, 4)
    if record.usage.limit:
        attributes["rlm.limit"] = record.usage.limit
    files = {} if run.depth else attachments(payloads, record)
    summary = _summary(record)
    failed = summary if run.depth and record.stop == "unanswered" else ""  # its parent is told of an error
    return Told(outputs={**fields, HOW_IT_ENDED: summary, **files}, attributes=attributes, failed=failed)


def _run_cut_short(payloads: Payloads, rlm: RLM, run: RunSpans, exception: BaseException) -> Told:
    record = record_cut_short(rlm, run.inputs, exception)
    how = _summary(record)
    files = {} if run.depth else attachments(payloads, record)
    attributes = {
        "rlm.stop": record.stop,
        "rlm.turns": len(record.trajectory),
        "rlm.usage": payloads.value(record.usage),
    }
    failed = how if record.stop == "interrupted" else ""
    return Told(outputs={HOW_IT_ENDED: how, **files}, attributes=attributes, failed=failed)


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
