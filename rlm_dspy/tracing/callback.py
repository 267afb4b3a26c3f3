"""Opens and closes MLflow spans for the units of a run, and for DSPy's calls around and inside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import SpanEvent, SpanStatus, SpanStatusCode

from rlm_dspy._dspy_compat import ACTIVE_CALL_ID
from rlm_dspy.budget.lm_events import answered, asked
from rlm_dspy.events import Event, Listener, LMEvent, RunEvent, StepEvent, SubCallEvent, here
from rlm_dspy.observe.record import cut_short
from rlm_dspy.tracing import span_end, span_start
from rlm_dspy.tracing._mlflow_compat import (
    MlflowCallback,
    TraceMetadataKey,
    detach_span_from_context,
    logs_traces,
    open_trace,
    rename,
    set_span_in_context,
    start_span_no_context,
)
from rlm_dspy.tracing.export_queue import announce, flush, has_ended, later, outbox
from rlm_dspy.tracing.mlflow_runs import result_table
from rlm_dspy.tracing.payloads import Payloads, Secrets
from rlm_dspy.tracing.span_spec import preview, scope_metadata, scope_tags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import dspy
    from mlflow.entities import LiveSpan

    from rlm_dspy.tracing.span_spec import Told
    from rlm_dspy.trajectory import SubCall

    Start = Callable[[Payloads, Any], Told | None]
    """Tells of what begins, below what called it."""
    End = Callable[[Payloads, Any, Any], Told]
    """Tells what came of it: the same, and what it returned."""

_ERROR_CHARS = 4_000
_SCORED_AFTER_SECONDS = 10.0


@dataclass
class Call:
    """A unit of a run or a DSPy call that has started and not ended.

    Attributes:
        what: The unit's event, or the module, LM, interpreter or tool that was called; or what stands for it.
        above: What it was called by, in the same way.
        payloads: Writes values for the spans of the trace.
        span: Its span, or that of what is around it if it is not shown.
        token: What takes its span out of the context again; None if it is not shown.
        evaluated: Whether `dspy.Evaluate` scores it; on a trace that is not stored yet, scores are lost.
        silent: Whether nothing of it is traced, as the store does not answer.
        root: Whether its span is the first of a trace.
    """

    what: Any
    above: Any
    payloads: Payloads
    span: Any = None
    token: Any = None
    evaluated: bool = False
    silent: bool = False
    root: bool = False


def _start(tell: Callable[[Payloads, Any, dict[str, Any], Any], Told | None]) -> Callable[..., None]:
    """Return a hook of DSPy for what begins."""

    def on_start(self: SpanCallback, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._begin(call_id, instance, lambda payloads, above: tell(payloads, instance, inputs, above))

    return on_start


def _end(tell: End) -> Callable[..., None]:
    """Return a hook of DSPy for what ends."""

    def on_end(self: SpanCallback, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._finish(call_id, outputs, exception, tell)

    return on_end


class SpanCallback(MlflowCallback, Listener):
    """MLflow's callback for DSPy, with its own names, nesting and contents of spans.

    It is what `mlflow.dspy.autolog` looks for, so that one takes the place of MLflow's own; runs of optimizers and
    of `Evaluate` are logged as MLflow does it.
    """

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self.secrets = secrets
        self.payloads = Payloads(secrets)
        self._calls: dict[str, Call] = {}
        self._evaluations: set[str] = set()
        self._announced: set[str] = set()
        """Traces with a run that have not ended."""
        self._sent = span_start.SentMessages()

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Become a fresh one where a model is loaded that was logged with it in DSPy's settings."""
        return _fresh, ()

    def on_event(self, event: Event) -> None:
        """Open or close the span of a unit of a run."""
        if isinstance(event, StepEvent):
            return
        if event.phase == "started":
            if isinstance(event, LMEvent):
                self.secrets.learn_lm(event.lm)
            self._begin(event.id, event, lambda payloads, _: span_start.of_event(payloads, event, self._sent))
            return
        if isinstance(event, SubCallEvent) and event.call is not None and event.call.cached:
            self._note_reuse(event.call)
        self._finish(event.id, None, event.error, lambda payloads, *_: span_end.of_event(payloads, event))
        if isinstance(event, RunEvent):
            self._sent.forget(event.run)

    # DSPy's calls

    on_module_start, on_module_end = _start(span_start.module), _end(span_end.module_ended)
    on_adapter_format_start = _start(partial(span_start.adapter, "format"))
    on_adapter_parse_start = _start(partial(span_start.adapter, "parse"))
    on_adapter_format_end = on_adapter_parse_end = _end(span_end.ended)
    on_tool_start, on_tool_end = _start(span_start.tool), _end(span_end.ended)
    on_interpreter_startup_start, on_interpreter_startup_end = _start(span_start.startup), _end(span_end.ended)
    on_interpreter_execute_start = _start(span_start.execution)
    on_interpreter_execute_end = _end(span_end.execution_ended)
    on_interpreter_tool_call_start = _start(span_start.host_call)
    on_interpreter_tool_call_end = _end(span_end.ended)

    def on_lm_start(self, call_id: str, instance: dspy.BaseLM, inputs: Mapping[str, Any]) -> None:
        """Open the span of a model call outside of runs."""
        if here() is None:
            self.secrets.learn_lm(instance)
            event = asked(call_id, instance, span_start.arguments(inputs))
            self._begin(call_id, event, lambda payloads, _: span_start.model(payloads, event, event.messages))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Close it, with tokens and price."""
        if here() is None and (call := self._calls.get(call_id)) is not None:
            event = answered(call.what, outputs, exception)
            self._finish(call_id, outputs, exception, lambda payloads, *_: span_end.model_ended(payloads, event))

    def on_evaluate_start(self, call_id: str, instance: dspy.Evaluate, inputs: Mapping[str, Any]) -> None:
        """Remember that what follows is scored."""
        queue = outbox()
        if queue is None or queue.open:
            self._evaluations.add(call_id)
            super().on_evaluate_start(call_id, instance, inputs)

    def on_evaluate_end(
        self, call_id: str, outputs: dspy.Prediction, exception: BaseException | None = None
    ) -> None:
        """Forget it."""
        if call_id in self._evaluations:
            self._evaluations.remove(call_id)
            super().on_evaluate_end(call_id, outputs, exception)

    def _generate_result_table(self, outputs: list[tuple[Any, Any, Any]]) -> dict[str, list[Any]]:
        """Return the table of an evaluation."""
        return result_table(self.payloads, outputs)

    # Spans

    def _parent(self) -> Call | None:
        """Return the innermost call that is under way here, also in a thread of `dspy.Parallel`."""
        return self._calls.get(ACTIVE_CALL_ID.get() or "")

    def _begin(self, call_id: str, what: Any, tell: Start) -> None:
        if not logs_traces():
            return
        parent = self._parent()
        if parent is None:
            call = self._outermost(what)
        else:
            call = Call(what, parent.what, parent.payloads, evaluated=parent.evaluated, silent=parent.silent)
        self._calls[call_id] = call
        if call.silent:
            return
        if (shown := tell(call.payloads, call.above)) is None:
            if parent is not None:
                call.what, call.span = parent.what, parent.span
            return
        call.what = shown.stands_for or what
        above = mlflow.get_current_active_span() or (parent.span if parent else None)
        if above is not None and has_ended(above.trace_id):  # nobody waits for who begins this
            call.silent = True
            return
        self._open_span(call, shown, above)

    def _outermost(self, what: Any) -> Call:
        """Return the first call of a trace."""
        self.secrets.learn_environment()
        queue, evaluated = outbox(), ACTIVE_CALL_ID.get() in self._evaluations
        silent = queue is not None and not queue.open
        return Call(what, None, Payloads(self.secrets, one_trace=True), evaluated=evaluated, silent=silent)

    def _open_span(self, call: Call, shown: Told, above: LiveSpan | None) -> None:
        call.root = above is None
        call.span = start_span_no_context(
            name=shown.name,
            span_type=shown.span_type,
            parent_span=above,
            inputs=shown.inputs,
            attributes=shown.attributes,
            tags=scope_tags() if call.root else None,
            metadata=scope_metadata() if call.root else None,
        )
        call.token = set_span_in_context(call.span)
        if call.root:
            _preview(call.span, request=preview(shown.inputs))
        if isinstance(call.what, RunEvent) and call.span.trace_id not in self._announced:
            self._announced.add(call.span.trace_id)
            announce(call.span.trace_id)

    def _finish(self, call_id: str, outputs: Any, exception: BaseException | None, tell: End) -> None:
        call = self._calls.pop(call_id, None)
        if call is None or call.token is None:
            return
        try:
            by_itself = exception is None or isinstance(call.what, Event)
            self._fill(call, tell(call.payloads, call.above, outputs) if by_itself else None, exception)
        finally:
            if call.root:
                self._announced.discard(call.span.trace_id)
                self._end_what_is_open(call.span.trace_id)
            call.span.end()
            detach_span_from_context(call.token)
        if call.root and call.evaluated:
            flush(_SCORED_AFTER_SECONDS)

    def _note_reuse(self, call: SubCall) -> None:
        """Note a sub-call that was answered before, and so has no span, on the span of its batch."""
        parent = self._parent()
        if parent is not None and parent.span is not None:
            name, attributes = span_end.reused(parent.payloads, call)
            parent.span.add_event(SpanEvent(name=name, attributes=attributes))

    def _end_what_is_open(self, trace_id: str) -> None:
        """End the spans of calls that nobody waits for: MLflow keeps a trace back until all of them have ended."""
        for call_id, call in list(self._calls.items()):
            inside = call.token is not None and not call.root and call.span.trace_id == trace_id
            if inside and self._calls.pop(call_id, None) is not None:
                call.span.set_status(SpanStatus(SpanStatusCode.ERROR, "The run ended before it was answered."))
                call.span.end()

    def _fill(self, call: Call, ended: Told | None, exception: BaseException | None) -> None:
        span, failed = call.span, ""
        if ended is not None:
            failed = ended.failed
            self._fill_in(span, ended)
        if exception is not None:
            span.add_event(_exception(call.payloads, exception))
        if exception is not None or failed:
            why = call.payloads.text(failed or _why(exception), _ERROR_CHARS)
            span.set_status(SpanStatus(SpanStatusCode.ERROR, why))
            if call.root and exception is not None:
                _preview(span, response=preview(why))
        outputs = ended.outputs if ended is not None else None
        if call.root and outputs is not None:
            self._keep_files(call, outputs)
        if call.root and exception is None:
            _preview(span, response=preview(_answer(outputs)))

    def _fill_in(self, span: LiveSpan, ended: Told) -> None:
        if ended.name:
            rename(span, ended.name)
        if ended.inputs is not None:
            span.set_inputs(ended.inputs)
        if ended.outputs is not None:
            span.set_outputs(ended.outputs)
        span.set_attributes(ended.attributes)
        for name, attributes in ended.events:
            span.add_event(SpanEvent(name=name, attributes=attributes))

    def _keep_files(self, call: Call, outputs: Mapping[str, Any]) -> None:
        """Keep the files of a run in the run of MLflow that it was made in; not of evaluations."""
        with open_trace(call.span.trace_id) as trace:
            run_id = trace and trace.info.trace_metadata.get(TraceMetadataKey.SOURCE_RUN)
        is_run = isinstance(call.what, RunEvent)
        if run_id and is_run and not call.evaluated and not self.optimizer_stack_level:
            later(span_end.keep_in_run, run_id, call.span.trace_id, outputs)


def _exception(payloads: Payloads, exception: BaseException) -> SpanEvent:
    event = SpanEvent.from_exception(exception)
    told_of = {name: payloads.text(str(value), _ERROR_CHARS) for name, value in event.attributes.items()}
    return SpanEvent(name=event.name, attributes=told_of)


def _why(exception: BaseException | None) -> str:
    """Return what ended a call that raised."""
    if exception is None or cut_short(exception)["stop"] == "interrupted":
        return "interrupted"
    return str(exception) or type(exception).__name__


def _answer(outputs: Any) -> Any:
    if not isinstance(outputs, dict):
        return outputs
    return {name: value for name, value in outputs.items() if name != span_end.HOW_IT_ENDED}


def _fresh() -> SpanCallback:
    return SpanCallback(Secrets())


def _preview(span: LiveSpan, **previews: str | None) -> None:
    """Set what the list of traces shows."""
    with open_trace(span.trace_id) as trace:
        if trace is not None:
            for which, preview in previews.items():
                if preview:
                    setattr(trace.info, f"{which}_preview", preview)
