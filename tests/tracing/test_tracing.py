"""`tracing.autolog()`: one trace a run, as a person reads it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import dspy
import mlflow
import mlflow.dspy.callback
import mlflow.dspy.util
import pytest
from dspy.teleprompt import Teleprompter

from rlm_dspy import RLM, Limits, tracing
from rlm_dspy.approval import RunInstead
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.observe import RunLog
from rlm_dspy.report.record import Record
from rlm_dspy.report.write_report import report_html
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields
from tests.tracing.stores import Store, call, span, tree

if TYPE_CHECKING:
    from pathlib import Path

    from rlm_dspy.testing import Messages


def search(word: str) -> list[str]:
    """Find lines with a word."""
    return [word]


def eventful() -> ScriptedLM:
    """Return a model whose run has everything: a tool, an error, a batch with a failure, a refused SUBMIT."""
    blocks = iter(
        [
            block("print(len(context), search('moon'))"),
            block("1 / 0", "Divide."),
            "I think so.",
            block("answers = llm_query_batched(['a?', 'b?', 'c?'])\nprint(answers)"),
            block("SUBMIT(answer=1)"),
            block("print('done')\nSUBMIT(answer=[str(a) for a in answers if a] + [llm_query('d?')])"),
        ]
    )

    def reply(messages: Messages) -> Any:
        prompt = messages[-1]["content"]
        if len(prompt) != 2:
            return next(blocks)
        return ValueError("no answer") if prompt == "b?" else prompt.upper()

    return ScriptedLM(reply)


def rlm(**options: Any) -> RLM:
    """Return a module with a tool."""
    return RLM("context, question -> answer: list[str]", tools=[search], **options)


TREE = """
RLM AGENT OK
  start LocalPythonInterpreter TASK OK
  turn 1 CHAIN OK
    act LLM OK
      scripted/lm CHAT_MODEL OK
    code TOOL OK
      search TOOL OK
  turn 2: error CHAIN ERROR
    act LLM OK
      scripted/lm CHAT_MODEL OK
    code TOOL ERROR
  turn 3: no code CHAIN ERROR
    act LLM OK
      scripted/lm CHAT_MODEL OK
  turn 4 CHAIN OK
    act LLM OK
      scripted/lm CHAT_MODEL OK
    code TOOL OK
      llm_query ×3 TOOL ERROR
        query LLM OK
          scripted/lm CHAT_MODEL OK
        query LLM ERROR
          scripted/lm CHAT_MODEL ERROR
        query LLM OK
          scripted/lm CHAT_MODEL OK
  turn 5: SUBMIT refused CHAIN ERROR
    act LLM OK
      scripted/lm CHAT_MODEL OK
    code TOOL OK
  turn 6: SUBMIT CHAIN OK
    act LLM OK
      scripted/lm CHAT_MODEL OK
    code TOOL OK
      llm_query TOOL OK
        query LLM OK
          scripted/lm CHAT_MODEL OK
"""


def test_the_spans_of_a_run_are_its_turns_its_code_and_its_sub_calls(store: Store, how: str) -> None:
    """Every span of one run, its type, its status and its place; the run ended well, and so the trace is OK."""
    call(rlm(limits=Limits(max_concurrency=1)), eventful(), how, context="x" * 1000, question="Which?")
    trace = store.trace()
    shown = tree(trace, lambda span: f"{span.name} {span.span_type} {span.status.status_code.name}")
    assert shown == TREE.strip()
    assert trace.info.state.name == "OK"


REVIEWED = """
RLM OK
  start LocalPythonInterpreter OK
  turn 1: code refused ERROR
    act OK
      scripted/lm OK
    on_code: refused OK
  turn 2 OK
    act OK
      scripted/lm OK
    on_code: other code OK
    code OK
      search ERROR
        on_tool: refused OK
  turn 3: SUBMIT OK
    act OK
      scripted/lm OK
    on_code OK
    code OK
    on_submit OK
"""


def test_each_question_to_a_hook_is_a_span_with_its_verdict(store: Store, how: str) -> None:
    calls = "try:\n    search('moon')\nexcept Exception: pass"
    verdicts = iter(["Not so.", RunInstead(calls), None])
    reviewed = rlm(
        on_code=lambda code: next(verdicts), on_tool=lambda name, arguments: "No.", on_submit=lambda answer: None
    )
    lm = ScriptedLM([block("print(1)"), block("print(2)"), block("SUBMIT(answer=['x'])")])
    call(reviewed, lm, how, context="x", question="Which?")
    trace = store.trace()
    assert tree(trace, lambda span: f"{span.name} {span.status.status_code.name}") == REVIEWED.strip()
    asked = [span(trace, f"on_code{verdict}") for verdict in (": refused", ": other code", "")]
    assert [each.inputs for each in asked] == [
        {"code": each} for each in ("print(1)", "print(2)", "SUBMIT(answer=['x'])")
    ]
    assert asked[0].outputs == {"refused": "Not so."}
    assert "search('moon')" in asked[1].outputs["run instead"]
    assert asked[2].outputs == {"agreed": True}
    assert span(trace, "on_tool: refused").inputs == {"tool": "search", "arguments": {"word": "moon"}}
    assert span(trace, "on_tool: refused").outputs == {"refused": "No."}
    assert span(trace, "on_submit").inputs == {"answer": ["x"]}


def test_a_resumed_run_is_a_trace_that_names_the_run_it_goes_on_with(store: Store, tmp_path: Path) -> None:
    module, log = RLM("text -> words: int", interpreter_factory=LocalPythonInterpreter), tmp_path / "run.jsonl"
    lm = ScriptedLM([block("words = text.split()"), dspy.LMServerError("502"), block("SUBMIT(words=len(words))")])
    with dspy.context(lm=lm):
        with contextlib.suppress(dspy.LMError), RunLog(log):
            module(text="to be")
        assert module.resume(log, text="to be").words == 2
    failed, ended = (trace.data.spans[0] for trace in store.traces())
    assert (failed.name, ended.name) == ("RLM", "RLM: resumed")
    assert failed.attributes["rlm.run"] == ended.attributes["rlm.run"]
    assert ended.outputs["how it ended"].endswith(
        "; resumed: the turns before are in the trace with the same rlm.run"
    )


class Claims(dspy.Signature):
    """List the claims the passage makes."""

    passage: str = dspy.InputField()
    claims: list[str] = dspy.OutputField()


def nested() -> ScriptedLM:
    """Return a model that asks a declared sub of two pieces, twice of one of them, an own module, and a child."""
    code = """
first = claims.map(["one", "two"])
again = claims("one")
topic = dspy.Predict("text -> topic")(text="three").topic
found = rlm_query("Find the number.", context[:100])
SUBMIT(answer=[*first[0], *first[1], topic, found])"""

    def claims(messages: Messages) -> str:
        return fields(claims=f'["{messages[-1]["content"].split()[5]}!"]')

    return ScriptedLM(
        act=lambda _: block(code),
        child=lambda _: block("SUBMIT(str(len(context)))"),
        subs={"claims": claims, "ad_hoc": lambda _: fields(topic="a topic")},
    )


NESTED = """
RLM
  start LocalPythonInterpreter
  turn 1: SUBMIT
    act
      scripted/lm
    code
      claims ×2
        claims
          scripted/lm
        claims
          scripted/lm
      claims
      dspy.Predict('text -> topic')
        Predict
          scripted/lm
      rlm_query
        RLM
          start LocalPythonInterpreter
          turn 1: SUBMIT
            act
              scripted/lm
            code
"""


def test_subs_and_children_hang_whole_below_the_code_that_asked_for_them(store: Store, how: str) -> None:
    """A batch is one span; what had been answered before is an event, as nothing was asked."""
    module = rlm(subs=[Claims], limits=Limits(max_concurrency=1))
    pred = call(module, nested(), how, context="x" * 1000, question="Which?")
    trace = store.trace()
    assert pred.answer == ["one!", "two!", "a topic", "100"]
    assert tree(trace) == NESTED.strip()
    assert span(trace, "claims ×2").inputs == [{"passage": "one"}, {"passage": "two"}]
    assert span(trace, "claims ×2").outputs == [["one!"], ["two!"]]
    reused = next(each for each in trace.data.spans if each.events and "before" in each.events[0].name)
    assert (reused.name, reused.outputs) == ("claims", ["one!"])
    child = span(trace, "RLM", 1)
    assert child.attributes["rlm.depth"] == 1
    assert "Find the number." in child.inputs["task"]
    used = trace.info.token_usage
    assert used["input_tokens"] == pred.usage["input_tokens"] > 0


def test_a_turn_shows_what_the_model_wrote_and_what_came_out(store: Store, how: str) -> None:
    """Code is fenced, as MLflow's page shows it in one line otherwise; failures are events, marked red there."""
    call(rlm(), eventful(), how, context="x" * 1000, question="Which?")
    trace = store.trace()
    first, failed, last = (span(trace, name) for name in ("turn 1", "turn 2: error", "turn 6: SUBMIT"))
    assert first.inputs["code"] == "```python\nprint(len(context), search('moon'))\n```"
    assert first.outputs == {"output": "```text\n1000 ['moon']\n```"}
    assert failed.inputs["reasoning"] == "Divide."
    assert "ZeroDivisionError" in failed.outputs["output"]
    assert [event.name for event in failed.events] == ["exception"]
    assert last.outputs == {
        "output": "```text\ndone\n```",
        "SUBMIT": {"answer": ["A?", "C?", "D?"]},
    }


def test_a_call_of_act_shows_only_the_messages_that_are_new(store: Store) -> None:
    """And how many, and how large, those are that went before."""
    call(rlm(), eventful(), "blocking", context="x", question="Which?")
    trace = store.trace()
    calls = [span(trace, "scripted/lm", nth).inputs["messages"] for nth in (0, 1)]
    assert [message["role"] for message in calls[0]] == ["system", "user"]
    assert [message["role"] for message in calls[1]] == ["system", "assistant", "user"]
    size = sum(len(message["content"]) for message in calls[0])
    assert calls[1][0]["content"] == f"[2 earlier messages, {size:,} characters: see turn 1 and those before]"


def test_the_run_tells_its_limits_why_it_ended_and_what_it_used(store: Store, how: str) -> None:
    """The totals of the trace are those of the run's ledger."""
    pred = call(rlm(limits=Limits(max_iters=9)), eventful(), how, context="x", question="Which?")
    trace = store.trace()
    told = span(trace, "RLM").attributes
    assert (told["rlm.limits.max_iters"], told["rlm.depth"], told["rlm.stop"]) == (9, 0, "submitted")
    assert (told["rlm.turns"], told["rlm.failed_turns"]) == (6, 3)
    used = trace.info.token_usage
    assert used["input_tokens"] == pred.usage["input_tokens"] > 0
    assert used["output_tokens"] == pred.usage["output_tokens"] > 0


def test_the_list_of_traces_shows_question_and_answer(store: Store) -> None:
    """Not the context, however it is handed over."""
    call(rlm(), eventful(), "blocking", context="x" * 5000, question="Which moons?")
    info = store.trace().info
    assert info.request_preview == "Which moons?"
    assert info.response_preview == "['A?', 'C?', 'D?']"


def test_tags_of_a_scope_reach_the_traces_that_begin_in_it(store: Store) -> None:
    """Also in DSPy's threads; an inner scope adds to the outer one."""
    lm = ScriptedLM(lambda _: block("SUBMIT(answer=[question])"))
    module = rlm(interpreter_factory=LocalPythonInterpreter)
    examples = [dspy.Example(context="", question=str(n)).with_inputs("context", "question") for n in range(3)]
    with dspy.context(lm=lm), tracing.tags(session="s", user="u"), tracing.tags(customer=7):
        module.batch(examples, num_threads=2, disable_progress_bar=True)
    traces = store.traces()
    assert len(traces) == 3
    for trace in traces:
        assert trace.info.trace_metadata["mlflow.trace.session"] == "s"
        assert trace.info.trace_metadata["mlflow.trace.user"] == "u"
        assert trace.info.tags["customer"] == "7"


class TwoAtOnce(dspy.Module):
    """Runs an RLM twice, in the threads of `dspy.Parallel`."""

    def __init__(self) -> None:
        super().__init__()
        self.find = rlm(interpreter_factory=LocalPythonInterpreter)

    def forward(self, questions: list[str]) -> Any:
        jobs = [(self.find, {"context": "c", "question": question}) for question in questions]
        return dspy.Prediction(found=dspy.Parallel(num_threads=2, disable_progress_bar=True)(jobs))


def test_runs_in_the_threads_of_dspy_parallel_hang_below_their_caller(store: Store) -> None:
    """One trace, whose spans all have their parent in it."""
    with dspy.context(lm=ScriptedLM(lambda _: block("SUBMIT(answer=[question])"))):
        TwoAtOnce()(questions=["a", "b"])
    assert tree(store.trace()).splitlines()[0] == "TwoAtOnce.forward"
    assert tree(store.trace()).count("\n  RLM\n    start") == 2


def test_many_runs_on_one_event_loop_make_a_trace_each(store: Store) -> None:
    """And none has spans of another."""

    async def run() -> None:
        module = rlm(interpreter_factory=LocalPythonInterpreter)
        await asyncio.gather(*(module.acall(context="c", question=f"q{n}") for n in range(8)))

    def reply(messages: Messages) -> str:
        asked = messages[-1]["content"]
        return f"about {asked}" if asked.startswith("q") else block("SUBMIT(answer=[llm_query(question)])")

    with dspy.context(lm=ScriptedLM(reply, seconds=0.01)):
        asyncio.run(run())
    traces = store.traces()
    assert len({tree(trace) for trace in traces}) == 1
    assert len(traces) == 8
    for trace in traces:
        (question,) = {span(trace, "RLM").inputs["question"]}
        assert span(trace, "query").inputs == {"prompt": question}


def test_an_error_that_ends_a_run_is_on_its_span_and_the_trace_has_failed(store: Store, how: str) -> None:
    """With what the run had done before."""
    lm = ScriptedLM([block("print(1)"), ValueError("no such model")])
    with pytest.raises(dspy.LMError):
        call(rlm(), lm, how, context="x", question="Which?")
    trace = store.trace()
    run = span(trace, "RLM")
    assert trace.info.state.name == "ERROR"
    assert "no such model" in run.events[0].attributes["exception.message"]
    assert run.attributes["rlm.turns"] == 1


def test_cached_answers_are_marked_and_cost_nothing(store: Store) -> None:
    """DSPy's cache answers the same prompt the second time."""
    lm = ScriptedLM(
        lambda messages: (
            "yes"
            if messages[-1]["content"] == "a?"
            else block("SUBMIT(answer=[llm_query('a?'), llm_query('a?')])")
        )
    )
    lm.cache = True
    with dspy.context(lm=lm):
        call(rlm(cache=False), lm, "blocking", context="cached", question="Which?")
    trace = store.trace()
    again = span(trace, "scripted/lm (cached)")
    assert again.attributes["cached"] is True
    assert "mlflow.chat.tokenUsage" not in again.attributes


def test_the_whole_run_and_the_report_on_it_are_files_of_the_trace(store: Store) -> None:
    """As the command line saves them."""
    pred = call(rlm(), eventful(), "blocking", context="x" * 5000, question="Which?")
    tracing.flush()
    kept = sorted(store.artifacts.rglob("attachments/*"), key=lambda path: path.read_text().startswith("<"))
    record = Record.load(kept[0])
    assert [step.model_dump() for step in record.trajectory] == pred.trajectory
    assert (record.stop, record.outputs) == ("submitted", {"answer": pred.answer})
    assert kept[1].read_text() == report_html(record)


def test_dspys_rlm_on_our_interpreters_has_spans_of_its_code_and_its_calls(store: Store) -> None:
    """From the interpreter's events alone."""
    script = [fields(reasoning="r", code="print(llm_query('a?'))"), "A", fields(reasoning="r", code="SUBMIT('1')")]
    with dspy.context(lm=ScriptedLM(script)):
        dspy.RLM("q -> answer", interpreter_factory=LocalPythonInterpreter)(q="?")
    lines = [line.strip() for line in tree(store.trace()).splitlines()]
    assert lines[0] == "RLM.forward"
    assert lines.count("code") == 3  # the first sets up
    assert "llm_query" in lines


def test_autolog_may_be_called_again_and_leaves_the_callbacks_of_others(store: Store) -> None:
    """Also after `dspy.configure(callbacks=...)` has thrown it out."""
    other = dspy.utils.callback.BaseCallback()
    dspy.configure(callbacks=[other])
    tracing.autolog()
    tracing.autolog()
    assert len(dspy.settings.callbacks) == 2
    assert other in dspy.settings.callbacks
    call(rlm(), eventful(), "blocking", context="x", question="Which?")
    assert len(store.traces()) == 1
    tracing.autolog(disable=True)
    assert dspy.settings.callbacks == [other]


def test_mlflows_own_autolog_is_replaced_and_not_doubled(store: Store) -> None:
    """Whichever of the two is called first."""
    tracing.autolog(disable=True)
    mlflow.dspy.autolog()
    tracing.autolog()
    mlflow.dspy.autolog()
    call(rlm(), eventful(), "blocking", context="x", question="Which?")
    assert tree(store.trace()).startswith("RLM\n  start LocalPythonInterpreter\n  turn 1")


def changed_by_logging() -> dict[str, Any]:
    """Return what `autolog` changes of MLflow, DSPy, logging and the environment."""
    names = {
        **{f"util.{name}": value for name, value in vars(mlflow.dspy.util).items() if not name.startswith("__")},
        **{f"callback.{name}": value for name, value in vars(mlflow.dspy.callback).items() if callable(value)},
        "Evaluate": dspy.Evaluate.__call__,
        **{f"compile.{kind.__name__}": kind.compile for kind in Teleprompter.__subclasses__()},
        **{name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")},
        "callbacks": list(dspy.settings.callbacks),
        "track_usage": dspy.settings.track_usage,
        "alembic": logging.getLogger("alembic").level,
    }
    return {
        name: value for name, value in names.items() if name not in {"MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"}
    }


@pytest.mark.parametrize("times", [0, 1, 2])
def test_disabling_puts_back_all_that_was_changed(store: Store, times: int) -> None:
    """However often it was enabled; disabling what was never enabled changes nothing."""
    tracing.autolog(disable=True)
    dspy.configure(track_usage=False)
    before = changed_by_logging()
    for _ in range(times):
        tracing.autolog()
        assert changed_by_logging() != before
    for _ in range(2):
        tracing.autolog(disable=True)
        assert changed_by_logging() == before


def test_disabling_leaves_what_another_has_put_in_its_place(store: Store) -> None:
    mine = lambda params: params  # noqa: E731
    before = mlflow.dspy.util.sanitize_params
    try:
        mlflow.dspy.util.sanitize_params = mine
        tracing.autolog(disable=True)
        assert mlflow.dspy.util.sanitize_params is mine
    finally:
        mlflow.dspy.util.sanitize_params = before


def test_files_that_code_wrote_are_files_of_the_trace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their name, unless they hold a known secret."""
    code = (
        "import pathlib\npathlib.Path('output').mkdir()\n"
        "pathlib.Path('output/plot.png').write_bytes(b'\\xffdrawn')\n"
        "pathlib.Path('output/key.txt').write_text('sk-planted-secret-1')\nSUBMIT(answer='done')"
    )
    lm = ScriptedLM([block(code)])
    monkeypatch.setenv("PLANTED_API_KEY", "sk-planted-secret-1")
    with dspy.context(lm=lm, interpreter_factory=PythonInterpreter):
        RLM("q -> answer")(q="?")
    contents = [path.read_bytes() for path in store.files(store.trace())]
    assert b"\xffdrawn" in contents
    assert not any(b"planted" in content for content in contents)


def test_the_calls_of_a_session_are_traces_of_one_session(store: Store) -> None:
    """A scope's `tags` may name another."""
    lm = ScriptedLM(lambda _: block("SUBMIT(answer=[question])"))
    with dspy.context(lm=lm), rlm(interpreter_factory=LocalPythonInterpreter).session(context="") as session:
        session(question="1")
        session(question="2")
        with tracing.tags(session="s"):
            session(question="3")
    found = [trace.info.trace_metadata["mlflow.trace.session"] for trace in store.traces()]
    assert sorted(found) == sorted([session.id, session.id, "s"])
