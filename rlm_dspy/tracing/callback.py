"""Opens and closes an MLflow span for each of DSPy's events: what it is called, where it hangs, what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.dspy.callback import MlflowCallback
from mlflow.entities import SpanEvent, SpanStatus, SpanStatusCode
from mlflow.tracing.constant import TraceMetadataKey
from mlflow.tracing.fluent import start_span_no_context
from mlflow.tracing.provider import detach_span_from_context, set_span_in_context
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.utils.autologging_utils import get_autologging_config

from rlm_dspy._dspy_compat import ACTIVE_CALL_ID
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.observe.record import cut_short
from rlm_dspy.subcalls.listener import SubCallListener
from rlm_dspy.tracing import span_end, span_start
from rlm_dspy.tracing.artifacts import keep_in_run
from rlm_dspy.tracing.export_queue import announce, flush, has_ended, later, outbox
from rlm_dspy.tracing.mlflow_runs import result_table
from rlm_dspy.tracing.payloads import Payloads, Secrets
from rlm_dspy.tracing.span_spec import preview, scope_metadata, scope_tags

if TYPE_CHECKING:
    from rlm_dspy.tracing.span_spec import RunSpans, Told
    from rlm_dspy.trajectory import SubCall

_ERROR_CHARS = 4_000
_SCORED_AFTER_SECONDS = 10.0


@dataclass
class Call:
    """A call that DSPy has told the start of, and not yet the end.

    Attributes:
        instance: The module, LM, interpreter or tool that was called, or what stands for it.
        payloads: Writes values for the spans of the trace.
        span: Its span; None for calls that are not shown.
        token: What takes the span out of the context again.
        run: The run of an RLM that it belongs to, if it does.
        evaluated: Whether `dspy.Evaluate` scores it; on a trace that is not stored yet, scores are lost.
        silent: Whether nothing of it is traced, as the store does not answer.
        root: Whether its span is the first of a trace.
    """

    instance: Any
    payloads: Payloads
    span: Any = None
    token: Any = None
    run: RunSpans | None = None
    evaluated: bool = False
    silent: bool = False
    root: bool = False


class SpanCallback(MlflowCallback, SubCallListener):
    """MLflow's callback for DSPy, but for how spans are named, nested and filled.

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

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Become a fresh one where a model is loaded that was logged with it in DSPy's settings."""
        return _fresh, ()

    # Events of DSPy

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Open the span of a module."""
        parent = self._parent()
        above = parent.instance if parent else None
        self._begin(
            call_id,
            instance,
            lambda payloads, run: span_start.module(payloads, instance, _arguments(inputs), run, above),
        )

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Close it."""
        self._finish(call_id, outputs, exception, span_end.module_ended)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Open the span of a model call."""
        self.secrets.learn_lm(instance)
        parent = self._parent()
        above = parent.instance if parent else None
        self._begin(
            call_id,
            instance,
            lambda payloads, run: span_start.model(payloads, instance, _arguments(inputs), run, above),
        )

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Close it, with tokens and price."""
        self._finish(call_id, outputs, exception, span_end.model_ended)

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Open a span, outside of runs; in a run the model call shows the messages."""
        self._begin(
            call_id, instance, lambda payloads, run: span_start.adapter(payloads, instance, "format", inputs, run)
        )

    def on_adapter_format_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Close it."""
        self._finish(call_id, outputs, exception, span_end.ended)

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Open a span, outside of runs; in a run the predictor shows what was read."""
        self._begin(
            call_id, instance, lambda payloads, run: span_start.adapter(payloads, instance, "parse", inputs, run)
        )

    on_adapter_parse_end = on_adapter_format_end

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Open the span of a tool, unless the interpreter's call of it is shown already."""
        parent = self._parent()
        above = parent.instance if parent else None
        self._begin(
            call_id,
            instance,
            lambda payloads, run: span_start.tool(payloads, instance, _arguments(inputs), run, above),
        )

    on_tool_end = on_adapter_format_end

    def on_interpreter_startup_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Open the span of the start of an interpreter."""
        self._begin(call_id, instance, lambda *_: span_start.startup(instance))

    on_interpreter_startup_end = on_adapter_format_end

    def on_interpreter_execute_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Open the span of an execution, unless it sets the REPL up."""
        self._begin(call_id, instance, lambda payloads, _: span_start.execution(payloads, inputs))

    def on_interpreter_execute_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        """Close it."""
        self._finish(call_id, outputs, exception, span_end.execution_ended)

    def on_interpreter_tool_call_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Open the span of a call from the code to the host."""
        self._begin(call_id, instance, lambda payloads, _: span_start.host_call(payloads, inputs))

    def on_interpreter_tool_call_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        """Close it."""
        self._finish(call_id, outputs, exception, span_end.host_call_ended)

    def on_subcall_end(self, call: SubCall) -> None:
        """Note a sub-call that was answered before, and so has no span."""
        parent = self._parent()
        if call.cached and parent is not None and parent.span is not None:
            name, attributes = span_end.reused(parent.payloads, call)
            parent.span.add_event(SpanEvent(name=name, attributes=attributes))

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Remember that what follows is scored."""
        queue = outbox()
        if queue is None or queue.open:
            self._evaluations.add(call_id)
            super().on_evaluate_start(call_id, instance, inputs)

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
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

    def _begin(self, call_id: str, instance: Any, tell: Any) -> None:
        if not get_autologging_config("dspy", "log_traces"):
            return
        parent = self._parent()
        payloads = parent.payloads if parent else Payloads(self.secrets, one_trace=True)
        call = Call(instance, payloads, run=parent.run if parent else None)
        call.evaluated = parent.evaluated if parent else ACTIVE_CALL_ID.get() in self._evaluations
        self._calls[call_id] = call
        if parent is None:
            self.secrets.learn_environment()
            queue = outbox()
            call.silent = queue is not None and not queue.open
        else:
            call.silent = parent.silent
        if call.silent:
            return
        shown: Told | None = tell(call.payloads, call.run)
        if shown is None:
            call.instance = parent.instance if parent else instance
            call.span, call.token = (parent.span, None) if parent else (None, None)
            return
        call.run, call.instance = shown.run or call.run, shown.stands_for or instance
        above = mlflow.get_current_active_span() or (parent.span if parent else None)
        call.root = above is None
        if above is not None and has_ended(above.trace_id):  # nobody waits for who begins this
            call.silent = True
            return
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
        if shown.run is not None and call.span.trace_id not in self._announced:
            self._announced.add(call.span.trace_id)
            announce(call.span.trace_id)

    def _finish(self, call_id: str, outputs: Any, exception: BaseException | None, tell: Any) -> None:
        call = self._calls.pop(call_id, None)
        if call is None or call.token is None:
            return
        try:
            ended: Told = tell(call.payloads, call, outputs, exception)
            self._fill(call, ended, exception)
        finally:
            if call.root:
                self._announced.discard(call.span.trace_id)
                self._end_what_is_open(call.span.trace_id)
            call.span.end()
            detach_span_from_context(call.token)
        if call.root and call.evaluated:
            flush(_SCORED_AFTER_SECONDS)

    def _end_what_is_open(self, trace_id: str) -> None:
        """End the spans of calls that nobody waits for: MLflow keeps a trace back until all of them have ended."""
        for call_id, call in list(self._calls.items()):
            inside = call.token is not None and not call.root and call.span.trace_id == trace_id
            if inside and self._calls.pop(call_id, None) is not None:
                call.span.set_status(SpanStatus(SpanStatusCode.ERROR, "The run ended before it was answered."))
                call.span.end()

    def _fill(self, call: Call, ended: Told, exception: BaseException | None) -> None:
        span = call.span
        if ended.name:
            span._span.update_name(ended.name)  # noqa: SLF001  # OpenTelemetry's; MLflow's span hides it
        if ended.inputs is not None:
            span.set_inputs(ended.inputs)
        if ended.outputs is not None:
            span.set_outputs(ended.outputs)
        span.set_attributes(ended.attributes)
        for name, attributes in ended.events:
            span.add_event(SpanEvent(name=name, attributes=attributes))
        if exception is not None:
            span.add_event(_exception(call.payloads, exception))
        if exception is not None or ended.failed:
            why = call.payloads.text(ended.failed or _why(exception), _ERROR_CHARS)
            span.set_status(SpanStatus(SpanStatusCode.ERROR, why))
            if call.root and exception is not None:
                _preview(span, response=preview(why))
        if call.root and ended.outputs is not None:
            self._keep_files(call, ended.outputs)
        if call.root and exception is None:
            _preview(span, response=preview(_answer(ended.outputs)))

    def _keep_files(self, call: Call, outputs: Any) -> None:
        """Keep the files of a run in the run of MLflow that it was made in; not of evaluations."""
        with InMemoryTraceManager.get_instance().get_trace(call.span.trace_id) as trace:
            run_id = trace and trace.info.trace_metadata.get(TraceMetadataKey.SOURCE_RUN)
        if run_id and isinstance(call.instance, RLM) and not call.evaluated and not self.optimizer_stack_level:
            later(keep_in_run, run_id, call.span.trace_id, outputs)


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


def _arguments(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, as DSPy's events hold them."""
    named = {name: value for name, value in inputs.items() if name not in ("args", "kwargs")}
    by_position = {"args": inputs["args"]} if inputs.get("args") else {}
    return {**by_position, **named, **inputs.get("kwargs", {})}


def _preview(span: Any, **previews: str | None) -> None:
    """Set what the list of traces shows."""
    with InMemoryTraceManager.get_instance().get_trace(span.trace_id) as trace:
        if trace is not None:
            for which, preview in previews.items():
                if preview:
                    setattr(trace.info, f"{which}_preview", preview)
