"""Opens and closes MLflow spans for the units of a run, and for DSPy's calls around and inside them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import SpanEvent, SpanStatus, SpanStatusCode

from rlm_dspy._dspy_compat import ACTIVE_CALL_ID
from rlm_dspy.budget.lm_events import asked
from rlm_dspy.events import (
    CellEvent,
    Event,
    Listener,
    LMEvent,
    PauseEvent,
    RunEvent,
    StepEvent,
    SubCallEvent,
    ToolEvent,
    here,
)
from rlm_dspy.report.record import cut_short
from rlm_dspy.text import one_line
from rlm_dspy.tracing import _mlflow_compat, span_end, span_start
from rlm_dspy.tracing.export_queue import announce, has_ended, installed_queue, later
from rlm_dspy.tracing.mlflow_runs import result_table
from rlm_dspy.tracing.payloads import Payloads, Secrets
from rlm_dspy.tracing.span_spec import preview, trace_tags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import dspy
    from mlflow.entities import LiveSpan

    from rlm_dspy.tracing.span_spec import SpanContent
    from rlm_dspy.trajectory import SubCall

_ERROR_CHARS = 4_000
_logger = logging.getLogger("dspy.rlm_dspy.tracing")


@dataclass
class Call:
    """A running unit of a run, or a running DSPy call.

    Attributes:
        payloads: Formats values for the spans of the trace.
        evaluated: Whether `dspy.Evaluate` scores it.
        silent: Whether it is not traced because the store accepts no more traces.
        event: The event of its start; None for a call that is not a unit. A call without a span has the event
            and the span of its parent.
        above: The start event of its parent.
        span: Its span.
        token: Detaches its span from the context; None if it has no span.
        root: Whether its span is the root of a trace.
    """

    payloads: Payloads
    evaluated: bool
    silent: bool
    event: Event | None = None
    above: Event | None = None
    span: Any = None
    token: Any = None
    root: bool = False


def _start(
    describe: Callable[[Payloads, Event | None, Any, Mapping[str, Any]], SpanContent | None],
) -> Callable[..., None]:
    """Return a DSPy hook for calls that are not units of a run."""

    def on_start(self: SpanCallback, call_id: str, instance: Any, inputs: Mapping[str, Any]) -> None:
        self._begin(call_id, None, lambda call: describe(call.payloads, call.event, instance, inputs))

    return on_start


class SpanCallback(_mlflow_compat.MlflowCallback, Listener):
    """MLflow's callback for DSPy, with its own names, nesting and contents of spans.

    `mlflow.dspy.autolog` recognizes it and adds no callback of its own. MLflow still logs runs of optimizers and
    of `Evaluate`.
    """

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self.secrets = secrets
        self.payloads = Payloads(secrets)
        self._calls: dict[str, Call] = {}
        self._evaluations: dict[str, mlflow.ActiveRun | None] = {}
        """The MLflow run around each evaluation."""
        self._announced: set[str] = set()
        """Open traces that contain a run."""
        self._sent = span_start.SentMessages()

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Unpickle as a new instance: a logged model may hold it in DSPy's settings."""
        return _fresh, ()

    def on_event(self, event: Event) -> None:
        """Open or close the span of a unit of a run."""
        if isinstance(event, StepEvent | PauseEvent):
            return
        if event.phase == "started":
            if isinstance(event, LMEvent):
                self.secrets.learn_lm(event.lm)
            describe = span_start.of_event
            self._begin(event.id, event, lambda call: describe(call.payloads, call.event, event, self._sent))
            return
        if isinstance(event, SubCallEvent) and event.call is not None and event.call.cached:
            self._note_reuse(event.call)
        self._finish(event.id, event.error, lambda call: span_end.of_event(call.payloads, event))
        if isinstance(event, RunEvent):
            self._sent.forget(event.run)

    # DSPy's calls

    on_module_start, on_tool_start = _start(span_start.module), _start(span_start.tool)
    on_adapter_format_start = _start(partial(span_start.adapter, "format"))
    on_adapter_parse_start = _start(partial(span_start.adapter, "parse"))
    on_interpreter_startup_start = _start(span_start.startup)

    def on_lm_start(self, call_id: str, instance: dspy.BaseLM, inputs: Mapping[str, Any]) -> None:
        """Open the span of a model call outside of runs."""
        if here() is None:
            self.on_event(asked(call_id, instance, span_start.arguments(inputs)))

    def on_interpreter_execute_start(self, call_id: str, instance: Any, inputs: Mapping[str, Any]) -> None:
        """Open the span for code that a module other than an RLM runs."""
        self.on_event(CellEvent(id=call_id, reasoning="", code=str(inputs.get("code", ""))))

    def on_interpreter_tool_call_start(self, call_id: str, instance: Any, inputs: Mapping[str, Any]) -> None:
        """Open the span of a call that such code makes."""
        given = {"args": inputs.get("args"), "kwargs": inputs.get("kwargs") or {}}
        self.on_event(ToolEvent(id=call_id, name=inputs["tool_name"], arguments=span_start.arguments(given)))

    def _on_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        def describe(call: Call) -> SpanContent:
            return span_end.returned(call.payloads, call.event, call.above, outputs, exception)

        self._finish(call_id, exception, describe)

    on_module_end = on_lm_end = on_tool_end = on_adapter_format_end = on_adapter_parse_end = _on_end
    on_interpreter_startup_end = on_interpreter_execute_end = on_interpreter_tool_call_end = _on_end

    def on_evaluate_start(self, call_id: str, instance: dspy.Evaluate, inputs: Mapping[str, Any]) -> None:
        """Remember that the calls in this scope are scored, and the MLflow run around it.

        A named evaluation, as each of `rlm_dspy.optimize.compare`, gets a run of its own in that run.
        """
        queue = installed_queue()
        if queue is None or queue.open:
            self._evaluations[call_id] = around = mlflow.active_run()
            named = (inputs.get("callback_metadata") or {}).get("metric_key")
            if around is not None and named and not self.optimizer_stack_level:
                mlflow.start_run(run_name=named, nested=True)
            super().on_evaluate_start(call_id, instance, inputs)

    def on_evaluate_end(
        self, call_id: str, outputs: dspy.Prediction, exception: BaseException | None = None
    ) -> None:
        """Forget it, and end its run: also if the server is away now, else later logs would go into this run."""
        if call_id not in self._evaluations:
            return
        around, queue = self._evaluations.pop(call_id), installed_queue()
        if queue is None or queue.open:
            try:
                super().on_evaluate_end(call_id, outputs, exception)
            except mlflow.MlflowException as error:
                _logger.warning("An evaluation was not logged to MLflow: %s", one_line(str(error), 300))
        if (run := mlflow.active_run()) is not None and run is not around:
            try:
                mlflow.end_run()
            except mlflow.MlflowException:
                later(mlflow.MlflowClient().set_terminated, run.info.run_id)

    def _generate_result_table(self, outputs: list[tuple[Any, Any, Any]]) -> dict[str, list[Any]]:
        """Return the table of an evaluation."""
        return result_table(self.payloads, outputs)

    # Spans

    def _parent(self) -> Call | None:
        """Return the innermost running call, also in a thread of `dspy.Parallel`."""
        return self._calls.get(ACTIVE_CALL_ID.get() or "")

    def _begin(self, call_id: str, event: Event | None, describe: Callable[[Call], SpanContent | None]) -> None:
        if not _mlflow_compat.logs_traces():
            return
        parent = self._parent()
        call = self._calls[call_id] = self._outermost() if parent is None else replace(parent, token=None)
        if call.silent or (content := describe(call)) is None:
            return
        around = mlflow.get_current_active_span() or call.span
        if around is not None and has_ended(around.trace_id):  # its caller no longer waits
            call.silent = True
            return
        call.event, call.above, call.root = event, call.event, around is None
        of_span = (content.name, content.span_type, around, content.inputs, content.attributes)
        session = event.session if isinstance(event, RunEvent) else ""
        of_trace = trace_tags(session) if call.root else {}
        call.span = _mlflow_compat.start_span_no_context(*of_span, **of_trace)
        call.token = _mlflow_compat.set_span_in_context(call.span)
        if call.root:
            _preview(call.span, "request", content.inputs)
        if isinstance(event, RunEvent) and call.span.trace_id not in self._announced:
            self._announced.add(call.span.trace_id)
            announce(call.span.trace_id)

    def _outermost(self) -> Call:
        """Return the root call of a trace."""
        self.secrets.learn_environment()
        queue, evaluated = installed_queue(), ACTIVE_CALL_ID.get() in self._evaluations
        silent = queue is not None and not queue.accepts
        return Call(Payloads(self.secrets, one_trace=True), evaluated, silent)

    def _finish(
        self, call_id: str, exception: BaseException | None, describe: Callable[[Call], SpanContent]
    ) -> None:
        call = self._calls.pop(call_id, None)
        if call is None or call.token is None:
            return
        try:
            self._fill(call, describe(call), exception)
        finally:
            if call.root:
                self._announced.discard(call.span.trace_id)
                self._end_what_is_open(call.span.trace_id)
            call.span.end()
            _mlflow_compat.detach_span_from_context(call.token)

    def _note_reuse(self, call: SubCall) -> None:
        """Record a cached sub-call, which has no span, on the span of its batch."""
        parent = self._parent()
        if parent is not None and parent.span is not None:
            name, attributes = span_end.reused(parent.payloads, call)
            parent.span.add_event(SpanEvent(name=name, attributes=attributes))

    def _end_what_is_open(self, trace_id: str) -> None:
        """End the spans of abandoned calls: MLflow holds back a trace until all its spans have ended."""
        for call_id, call in list(self._calls.items()):
            inside = call.token is not None and not call.root and call.span.trace_id == trace_id
            if inside and self._calls.pop(call_id, None) is not None:
                call.span.set_status(SpanStatus(SpanStatusCode.ERROR, "The run ended before it was answered."))
                call.span.end()

    def _fill(self, call: Call, content: SpanContent, exception: BaseException | None) -> None:
        span, failed = call.span, content.failed
        if content.name:
            _mlflow_compat.rename(span, content.name)
        if content.inputs is not None:
            span.set_inputs(content.inputs)
        if content.outputs is not None:
            span.set_outputs(content.outputs)
        span.set_attributes(content.attributes)
        for name, attributes in content.events:
            span.add_event(SpanEvent(name=name, attributes=attributes))
        if exception is not None:
            failed = call.payloads.error(failed or _why(exception), _ERROR_CHARS)
            span.add_event(_exception(call.payloads, exception, failed))
        if failed:
            span.set_status(SpanStatus(SpanStatusCode.ERROR, failed))
        if call.root:
            _preview(span, "response", content.outputs if exception is None else failed)
            if isinstance(call.event, RunEvent) and not call.evaluated and not self.optimizer_stack_level:
                self._keep_files(span.trace_id, content.outputs)

    def _keep_files(self, trace_id: str, outputs: Mapping[str, Any]) -> None:
        """Log the files of a run to the active MLflow run, if there is one."""
        with _mlflow_compat.open_trace(trace_id) as trace:
            run_id = trace and trace.info.trace_metadata.get(_mlflow_compat.TraceMetadataKey.SOURCE_RUN)
        if run_id:
            later(span_end.keep_in_run, run_id, trace_id, outputs)


def _exception(payloads: Payloads, exception: BaseException, why: str) -> SpanEvent:
    """Return the event that MLflow's page shows first, for an interrupt without the stack trace."""
    event = SpanEvent.from_exception(exception)
    shown = {name: payloads.error(str(value), _ERROR_CHARS) for name, value in event.attributes.items()}
    shown["exception.message"] = shown["exception.message"] or why
    if _is_interrupt(exception):
        del shown["exception.stacktrace"]
    return SpanEvent(name=event.name, attributes=shown)


def _is_interrupt(exception: BaseException) -> bool:
    stop: str = cut_short(exception)["stop"]
    return stop == "interrupted"


def _why(exception: BaseException) -> str:
    """Return the exception that ended a call."""
    return "interrupted" if _is_interrupt(exception) else str(exception) or type(exception).__name__


def _fresh() -> SpanCallback:
    return SpanCallback(Secrets())


def _preview(span: LiveSpan, which: str, values: Any) -> None:
    """Set the preview of a trace's `request` or `response` in the list of traces."""
    shown = preview(values)
    with _mlflow_compat.open_trace(span.trace_id) as trace:
        if trace is not None and shown:
            setattr(trace.info, f"{which}_preview", shown)
