"""Builds the name, type and inputs of a span; returns None for calls without a span.

The result of a turn, a cell or a run is known at its end: see `span_end`.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

import dspy
from mlflow.entities import SpanType

from rlm_dspy.budget.metered_lm import role
from rlm_dspy.events import BatchEvent, CellEvent, LMEvent, ReviewEvent, RunEvent, ToolEvent, TurnEvent, here
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.loop.turn import Turn
from rlm_dspy.subcalls.ad_hoc import written
from rlm_dspy.subcalls.child import ChildQuery
from rlm_dspy.tracing._mlflow_compat import SpanAttributeKey
from rlm_dspy.tracing.span_spec import MESSAGE_CHARS, REPEATED_CHARS, TEXT_CHARS, SpanContent, fenced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlm_dspy.events import Event
    from rlm_dspy.tracing.payloads import Payloads

_LM_SETTINGS = ("temperature", "max_tokens", "top_p", "top_k", "seed", "stop", "n", "reasoning_effort")
_ACT = ("act", "child.act")
_TRACED_BY_EVENTS = (RLM, Turn, ChildQuery)
Messages = tuple["Mapping[str, Any]", ...]


def of_event(payloads: Payloads, above: Event | None, event: Event, known: SentMessages) -> SpanContent | None:
    """Describe a starting unit of a run, or a similar call outside runs, below the unit `above`."""
    content: SpanContent | None = None  # for a sub-call: the spans of its batch and its module show it
    if not event.run and above is not None and above.run:
        return None  # code, or its call, that already is a unit of the run
    match event:
        case RunEvent():
            content = _run(payloads, event)
        case TurnEvent():
            content = SpanContent(f"turn {event.turn}", SpanType.CHAIN)
        case ReviewEvent():
            content = SpanContent(event.hook, SpanType.GUARDRAIL, payloads.value(event.asked))
        case CellEvent():
            content = SpanContent("code", SpanType.TOOL, {"code": fenced(payloads.text(event.code, TEXT_CHARS))})
        case ToolEvent():
            content = SpanContent(event.name, SpanType.TOOL, payloads.value(event.arguments))
        case BatchEvent():
            shown = payloads.value(event.items if len(event.items) != 1 else event.items[0], REPEATED_CHARS)
            times = f" ×{len(event.items)}" if len(event.items) > 1 else ""
            content = SpanContent(f"{event.name}{times}", SpanType.TOOL, shown)
        case LMEvent():
            messages = known.new(event) if event.role in _ACT else event.messages
            content = model(payloads, event, messages)
    return content


def arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, as in DSPy's events."""
    named = {name: value for name, value in inputs.items() if name not in ("args", "kwargs")}
    by_position = {"args": inputs["args"]} if inputs.get("args") else {}
    return {**by_position, **named, **inputs.get("kwargs", {})}


def module(
    payloads: Payloads, above: Event | None, instance: dspy.Module, inputs: Mapping[str, Any]
) -> SpanContent | None:
    """Describe a module call; `above` is the unit that made it, if any."""
    if isinstance(instance, _TRACED_BY_EVENTS):
        return None
    name, given = type(instance).__name__, arguments(inputs)
    if isinstance(above, TurnEvent):
        return SpanContent("act", SpanType.LLM, _act_inputs(payloads, given))
    if here() is None:
        name = f"{name}.forward"  # as MLflow names it
    elif isinstance(above, BatchEvent) and above.name.isidentifier():
        name = "query" if above.name == "llm_query" else above.name
    elif isinstance(above, RunEvent):
        name = role().removeprefix("child.")  # `extract`, `fold`
    signature = getattr(getattr(instance, "signature", None), "signature", None)
    attributes = {} if signature is None else {"signature": signature}
    return SpanContent(name, _type_of(instance), payloads.value(given), attributes=attributes)


def model(payloads: Payloads, event: LMEvent, messages: Sequence[Mapping[str, Any]]) -> SpanContent:
    """Describe a model call with some of its messages."""
    lm, in_run, shown = event.lm, bool(event.run), dict[str, Any]()
    if messages:
        shown["messages"] = payloads.value(list(messages), MESSAGE_CHARS)
    if event.prompt is not None:
        shown["prompt"] = payloads.value(event.prompt, MESSAGE_CHARS)
    attributes = {
        **{name: lm.kwargs[name] for name in _LM_SETTINGS if lm.kwargs.get(name) is not None},
        "model": lm.model,
        "cache": lm.cache,
        "role": event.role.removeprefix("child.") if in_run else None,
        SpanAttributeKey.MESSAGE_FORMAT: "dspy",
        SpanAttributeKey.MODEL: lm.model,
    }
    if "/" in lm.model:
        attributes[SpanAttributeKey.MODEL_PROVIDER] = lm.model.split("/", 1)[0]
    name = lm.model if in_run else f"{type(lm).__name__}.__call__"
    kind = SpanType.CHAT_MODEL if getattr(lm, "model_type", None) == "chat" else SpanType.LLM
    return SpanContent(name, kind, shown, attributes=attributes)


def adapter(
    what: str, payloads: Payloads, _above: Event | None, instance: dspy.Adapter, inputs: Mapping[str, Any]
) -> SpanContent | None:
    """Describe an adapter call (`what`: `format` or `parse`), except in runs, where other spans show it."""
    if here() is not None:
        return None
    return SpanContent(
        f"{type(instance).__name__}.{what}", SpanType.PARSER, payloads.value(inputs, REPEATED_CHARS)
    )


def tool(
    payloads: Payloads, above: Event | None, instance: dspy.Tool, inputs: Mapping[str, Any]
) -> SpanContent | None:
    """Describe a tool call, unless a run's code makes it."""
    if isinstance(above, ToolEvent) and above.name == instance.name:
        return None
    attributes = {"name": instance.name, "description": instance.desc, "args": instance.args}
    name = instance.name if here() is not None else f"Tool.{instance.name}"
    return SpanContent(
        name, SpanType.TOOL, payloads.value(arguments(inputs)), attributes=payloads.value(attributes)
    )


def startup(
    _: Payloads, _above: Event | None, instance: dspy.CodeInterpreter, _inputs: Mapping[str, Any]
) -> SpanContent:
    """Describe the start of an interpreter."""
    return SpanContent(f"start {type(instance).__name__}", SpanType.TASK)


def _run(payloads: Payloads, event: RunEvent) -> SpanContent:
    attributes = {
        "rlm.run": event.id,
        "rlm.signature": written(event.signature),
        "rlm.instructions": payloads.text(event.signature.instructions, REPEATED_CHARS),
        "rlm.depth": event.depth,
        **{f"rlm.limits.{name}": payloads.value(value) for name, value in vars(event.limits).items() if value},
    }
    inputs = [(name, payloads.variable(name, value)) for name, value in event.inputs.items()]
    # MLflow's page of a session shows the first: the question, not the long text.
    shown = dict(sorted(inputs, key=lambda each: len(str(each[1]))))
    if event.depth:  # a child's task is in its instructions
        shown = {"task": attributes["rlm.instructions"], **shown}
    name = f"{event.name}: resumed" if event.resumed else event.name
    return SpanContent(name, SpanType.AGENT, shown, attributes=attributes)


def _act_inputs(payloads: Payloads, inputs: Mapping[str, Any]) -> dict[str, Any]:
    steps = len(inputs["trajectory"])
    if not steps:
        return {"environment": fenced(payloads.text(str(inputs["environment"]), MESSAGE_CHARS), "text")}
    return {"environment": "as in turn 1", "trajectory": f"the {steps} turns before" if steps > 1 else "turn 1"}


class SentMessages:
    """Remembers the messages of the last `act` call of each run."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[Messages, int]] = {}

    def forget(self, run: str) -> None:
        """Forget an ended run."""
        self._sent.pop(run, None)

    def new(self, event: LMEvent) -> Sequence[Mapping[str, Any]]:
        """Return the messages that the last call did not send; a note stands for those that it sent."""
        messages, turn = tuple(event.messages), event.turn or 0
        sent, sent_in = self._sent.get(event.run, ((), 0))
        self._sent[event.run] = (messages, turn)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(messages, sent, strict=False)))
        if not known:
            return messages
        size = sum(len(str(message.get("content", ""))) for message in messages[:known])
        note = f"[{known} earlier messages, {size:,} characters: see turn {sent_in} and those before]"
        return ({"role": "system", "content": note}, *messages[known:])


def _type_of(instance: dspy.Module) -> str:
    if isinstance(instance, dspy.Predict):
        return str(SpanType.LLM)
    if isinstance(instance, dspy.Retrieve):
        return str(SpanType.RETRIEVER)
    return str(SpanType.AGENT if isinstance(instance, dspy.ReAct | dspy.ReActV2 | dspy.RLM) else SpanType.CHAIN)
