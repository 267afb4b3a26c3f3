"""What a span is opened with: its name, its type, what went in. None stands for what is not shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
from mlflow.entities import SpanType
from mlflow.tracing.constant import SpanAttributeKey

from rlm_dspy.budget import metering
from rlm_dspy.interpreters.base import SETUP
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.loop.turn import Turn
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.prompt.query import Query
from rlm_dspy.repl.bootstrap import HOST_TOOL
from rlm_dspy.subcalls.ad_hoc import written
from rlm_dspy.subcalls.batch import Batch
from rlm_dspy.subcalls.child import ChildQuery
from rlm_dspy.tracing.span_spec import MESSAGE_CHARS, REPEATED_CHARS, TEXT_CHARS, HostCall, RunSpans, Told, fenced

if TYPE_CHECKING:
    from rlm_dspy.tracing.payloads import Payloads

_LM_SETTINGS = ("temperature", "max_tokens", "top_p", "top_k", "seed", "stop", "n", "reasoning_effort")
_NAMES = {"query": "llm_query", "rlm_query": "rlm_query"}


def module(
    payloads: Payloads, instance: Any, inputs: dict[str, Any], run: RunSpans | None, above: Any
) -> Told | None:
    """Tell of a module that is called; `above` is what called it."""
    if isinstance(instance, RLM):
        return _run(payloads, instance, inputs, run)
    if run is None:
        return _plain(payloads, instance, f"{type(instance).__name__}.forward", inputs)  # as MLflow names it
    if isinstance(instance, Turn):
        run.turn = inputs["number"]
        return Told(f"turn {run.turn}", SpanType.CHAIN)
    if isinstance(instance, Act):
        return Told("act", SpanType.LLM, _act_inputs(payloads, inputs))
    if isinstance(instance, Batch | ChildQuery):
        # Told already by the call that it belongs to, and in full by the run inside it.
        return _batch(instance) if isinstance(instance, Batch) and not isinstance(above, HostCall) else None
    name = type(instance).__name__
    if isinstance(above, HostCall) and above.name.isidentifier():
        name = "query" if isinstance(instance, Query) else above.name
    return _plain(payloads, instance, role() if isinstance(above, RLM) else name, inputs)  # `extract`, `fold`


def model(payloads: Payloads, lm: Any, inputs: dict[str, Any], run: RunSpans | None, above: Any) -> Told:
    """Tell of a model call. In a run a call of `act` shows the messages that the turn before had not sent."""
    messages = list(inputs.get("messages") or [])
    shown: dict[str, Any] = {}
    if messages:
        new = _new_messages(messages, run) if isinstance(above, Act) and run is not None else messages
        shown["messages"] = payloads.value(new, MESSAGE_CHARS)
    if inputs.get("prompt") is not None:
        shown["prompt"] = payloads.value(inputs["prompt"], MESSAGE_CHARS)
    settings = {name: lm.kwargs[name] for name in _LM_SETTINGS if lm.kwargs.get(name) is not None}
    attributes = {
        **settings,
        "model": lm.model,
        "cache": lm.cache,
        "role": role() if run is not None else None,
        SpanAttributeKey.MESSAGE_FORMAT: "dspy",
        SpanAttributeKey.MODEL: lm.model,
    }
    if "/" in lm.model:
        attributes[SpanAttributeKey.MODEL_PROVIDER] = lm.model.split("/", 1)[0]
    name = f"{type(lm).__name__}.__call__" if run is None else lm.model
    kind = SpanType.CHAT_MODEL if getattr(lm, "model_type", None) == "chat" else SpanType.LLM
    return Told(name, kind, shown, attributes=attributes)


def role() -> str:
    """Return for what models are asked here: `act`, `extract`, `fold`, `query`, the name of a sub."""
    return metering.role().removeprefix("child.")


def adapter(
    payloads: Payloads, instance: Any, what: str, inputs: dict[str, Any], run: RunSpans | None
) -> Told | None:
    """Tell of an adapter that writes or reads messages; not in a run, where other spans show them."""
    if run is not None:
        return None
    return Told(f"{type(instance).__name__}.{what}", SpanType.PARSER, payloads.value(inputs, REPEATED_CHARS))


def tool(
    payloads: Payloads, instance: Any, inputs: dict[str, Any], run: RunSpans | None, above: Any
) -> Told | None:
    """Tell of a tool, unless it is the one that the code's call names."""
    if isinstance(above, HostCall) and above.name == instance.name:
        return None
    name = f"Tool.{instance.name}" if run is None else instance.name
    attributes = {"name": instance.name, "description": instance.desc, "args": instance.args}
    return Told(name, SpanType.TOOL, payloads.value(inputs), attributes=payloads.value(attributes))


def startup(instance: Any) -> Told:
    """Tell of an interpreter that starts."""
    return Told(f"start {type(instance).__name__}", SpanType.TASK)


def execution(payloads: Payloads, inputs: dict[str, Any]) -> Told | None:
    """Tell of code that runs; not of what sets a REPL up."""
    code = str(inputs.get("code", ""))
    if code.startswith(SETUP):
        return None
    shown: dict[str, Any] = {"code": fenced(payloads.text(code, TEXT_CHARS))}
    if inputs.get("variables"):
        shown["variables"] = {name: payloads.variable(name, value) for name, value in inputs["variables"].items()}
    return Told("code", SpanType.TOOL, shown)


def host_call(payloads: Payloads, inputs: dict[str, Any]) -> Told:
    """Tell of a call from the code to the host: a tool, or sub-calls that were asked for together."""
    name, args, kwargs = inputs["tool_name"], inputs.get("args") or [], inputs.get("kwargs") or {}
    if name != HOST_TOOL or not isinstance(kwargs.get("call"), dict):
        shown = payloads.value({**({"args": args} if args else {}), **kwargs})
        return Told(name, SpanType.TOOL, shown, stands_for=HostCall(name))
    call = kwargs["call"]
    called, asked = _called(call.get("to") or {}), [_item(item, call.get("same")) for item in call["items"]]
    shown = payloads.value(asked if len(asked) != 1 else asked[0], REPEATED_CHARS)
    return Told(_times(called, len(asked)), SpanType.TOOL, shown, stands_for=HostCall(called))


def _called(to: dict[str, Any]) -> str:
    """Return how the code calls what a sub-call is for (see `in_repl`)."""
    kind = str(to.get("kind", ""))
    if kind == "ad_hoc":
        signature = to.get("signature") or {}
        return f"dspy.{to.get('module')}({str(signature.get('text') or signature.get('name'))[:80]!r})"
    return _NAMES.get(kind, str(to.get("name") or kind))


def _item(item: list[dict[str, Any]], same: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Return the fields of an item, those that all of a batch share too; inputs of the run by their name."""
    values: dict[str, Any] = {}
    for part in (same or [{}, {}], item):
        values |= part[0]
        values |= {name: f"the whole input {own!r}" for name, own in part[1].items()}
    return values


def _batch(batch: Batch) -> Told:
    called = _NAMES.get(batch.name, batch.name)
    return Told(_times(called, batch.total), SpanType.TOOL, stands_for=HostCall(called))


def _times(called: str, number: int) -> str:
    return f"{called} ×{number}" if number > 1 else called


def _plain(payloads: Payloads, instance: Any, name: str, inputs: dict[str, Any]) -> Told:
    signature = getattr(getattr(instance, "signature", None), "signature", None)
    attributes = {} if signature is None else {"signature": signature}
    return Told(name, _type_of(instance), payloads.value(inputs), attributes=attributes)


def _run(payloads: Payloads, rlm: RLM, inputs: dict[str, Any], run: RunSpans | None) -> Told:
    given = {name: value for name, value in inputs.items() if name != "interpreter_factory"}
    begun = RunSpans(depth=run.depth + 1 if run else 0, inputs=given)
    attributes = {
        "rlm.signature": written(rlm.signature),
        "rlm.instructions": payloads.text(rlm.signature.instructions, REPEATED_CHARS),
        "rlm.depth": begun.depth,
        **{f"rlm.limits.{name}": payloads.value(value) for name, value in vars(rlm.limits).items() if value},
    }
    shown = {name: payloads.variable(name, value) for name, value in given.items()}
    if begun.depth:  # a child's task is in its instructions
        shown = {"task": attributes["rlm.instructions"], **shown}
    return Told(type(rlm).__name__, SpanType.AGENT, shown, attributes=attributes, run=begun)


def _act_inputs(payloads: Payloads, inputs: dict[str, Any]) -> dict[str, Any]:
    steps = len(inputs["trajectory"])
    if not steps:
        return {"environment": fenced(payloads.text(inputs["environment"], MESSAGE_CHARS), "text")}
    return {"environment": "as in turn 1", "trajectory": f"the {steps} turns before" if steps > 1 else "turn 1"}


def _new_messages(messages: list[Any], run: RunSpans) -> list[Any]:
    """Return the messages behind those that the last call had sent, and a note in the place of these."""
    known = 0
    while known < min(len(messages), len(run.sent)) and messages[known] == run.sent[known]:
        known += 1
    before, sent_in = messages[:known], run.sent_in
    run.sent, run.sent_in = list(messages), run.turn
    if not known:
        return messages
    size = sum(len(str(message.get("content", ""))) for message in before)
    note = f"[{known} earlier messages, {size:,} characters: see turn {sent_in} and those before]"
    return [{"role": "system", "content": note}, *messages[known:]]


def _type_of(instance: Any) -> str:
    if isinstance(instance, dspy.Predict):
        return str(SpanType.LLM)
    if isinstance(instance, dspy.Retrieve):
        return str(SpanType.RETRIEVER)
    return str(SpanType.AGENT if isinstance(instance, dspy.ReAct | dspy.RLM) else SpanType.CHAIN)
