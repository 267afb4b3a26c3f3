"""What tracing stores: no secrets, not much, every score; and that a store which fails costs a run nothing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from typing import TYPE_CHECKING, Any

import dspy
import mlflow
import pytest

from rlm_dspy import RLM, Limits, signatures, tracing
from rlm_dspy.coverage.tracker import watched
from rlm_dspy.errors import RLMError
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.progress import Progress
from rlm_dspy.optimize import compare
from rlm_dspy.redaction import without_secrets
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.tracing import export_queue
from rlm_dspy.tracing.payloads import Payloads, Secrets
from rlm_dspy.tracing.span_spec import trace_tags
from tests.playing import block
from tests.tracing.stores import Store, call, span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rlm_dspy.testing import Messages

SIGNATURE = "context, question -> answer: list[str]"


def keyed(lm: dspy.LM, key: str) -> dspy.LM:
    """Return an LM with a key in every place that LMs have for one."""
    lm.kwargs |= {
        "api_key": f"sk-{key}-argument",
        "extra_headers": {"Authorization": f"Bearer {key}-bearer", "X-Gateway": f"{key}-header"},
        "headers": {"x-api-key": f"{key}-plain-header"},
    }
    return lm


def test_no_key_reaches_a_trace_a_run_or_an_artifact(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in LMs, headers, the environment, errors and outputs; every byte of the store is searched."""
    key = "kq7vTz4planted"
    monkeypatch.setenv("SOME_PROVIDER_API_KEY", f"{key}-environment")

    def leak() -> str:
        """Return what a careless tool returns."""
        return f"{'.' * 3990}{key}-environment"

    def reply(messages: Messages) -> Any:
        if messages[-1]["content"] == "ask":
            return ValueError(f"401: invalid key sk-{key}-argument for Bearer {key}-bearer")
        return next(blocks)

    script = [
        block("print(leak())"),
        block("raise ValueError(leak())"),
        block("llm_query('ask')"),
        block("SUBMIT(answer=[leak()])"),
    ]
    blocks = iter(script * 3)
    module = RLM(SIGNATURE, tools=[leak], sub_lm=keyed(ScriptedLM(reply), key + "-sub"))
    example = dspy.Example(context=f"{key}-environment", question="Which?").with_inputs("context", "question")
    lm = keyed(ScriptedLM(reply), key)
    call(module, lm, "blocking", **example.inputs())
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        dspy.Evaluate(devset=[example], metric=lambda *_: 1.0, display_progress=False)(module)
    tracing.flush()
    content = store.content()
    assert b"***" in content
    places = [content[at - 200 : at + 60] for at in _places(content, key.encode())]
    assert places == []


def _places(content: bytes, wanted: bytes) -> Iterator[int]:
    at = content.find(wanted)
    while at >= 0:
        yield at
        at = content.find(wanted, at + 1)


def test_what_only_looks_like_a_key_is_in_no_error_of_a_trace(store: Store) -> None:
    """A server quotes a key that no LM here is set to; the stack and the score of a metric quote it too."""
    key = "planted-planted-planted"

    def reply(messages: Messages) -> Any:
        return RuntimeError(f"refused: Bearer {key}, sk-{key}")

    def metric(*_: Any) -> float:
        raise ValueError(f"no such user: https://me:{key}@example.org")

    with pytest.raises(dspy.LMError):
        call(RLM(SIGNATURE), ScriptedLM(reply), "blocking", context="c", question="Which?")
    example = dspy.Example(question="Which?").with_inputs("question")
    with dspy.context(lm=ScriptedLM(["[[ ## answer ## ]]\na"])), contextlib.suppress(ValueError):
        dspy.Evaluate(devset=[example], metric=metric, display_progress=False)(dspy.Predict("question -> answer"))
    content = store.content()
    assert b"refused: Bearer ***, ***" in content
    assert key.encode() not in content


def test_settings_lose_what_is_secret_and_keep_the_rest() -> None:
    """By name, also inside dicts; a number is no secret."""
    settings = {"max_tokens": 9, "temperature": 0.5, "api_key": "k", "extra_headers": {"X-Gateway": "g"}}
    nested = {"extra_body": {"seed": 1, "apiKey": "k"}, "stop": ["a"]}
    kept = {"max_tokens": 9, "temperature": 0.5, "extra_body": {"seed": 1}, "stop": ["a"]}
    assert without_secrets({**settings, **nested}) == kept


def test_twenty_turns_over_ten_megabytes_stay_under_a_megabyte(store: Store) -> None:
    """With every turn's code and output whole."""
    turns = [block(f"x = {n}\nprint(str(x) + ' ' + context[x * 1000 : x * 1000 + 9000])") for n in range(19)]
    lm = ScriptedLM([*turns, block("SUBMIT(answer=['done'])")])
    context = "".join(f"line {n} of the text\n" for n in range(500_000))
    pred = call(RLM(SIGNATURE, limits=Limits(max_iters=20)), lm, "blocking", context=context, question="Which?")
    trace = store.trace()
    assert len(context) > 10_000_000
    assert json.loads(trace.info.trace_metadata["mlflow.trace.sizeStats"])["total_size_bytes"] < 1_000_000
    for number, step in enumerate(pred.trajectory[:-1], start=1):
        turn = span(trace, f"turn {number}")
        assert turn.inputs["code"] == f"```python\n{step['code']}\n```"
        assert step["output"] in turn.outputs["output"]


def four_questions() -> list[dspy.Example]:
    """Return what `Evaluate` asks; the gold answer is the question."""
    fields = [{"context": "c", "question": str(number), "gold": str(number)} for number in range(4)]
    return [dspy.Example(**each).with_inputs("context", "question") for each in fields]


def evaluate(metric: Callable[..., Any], times: int = 1) -> None:
    """Evaluate a fast program in several threads."""
    lm, settings = ScriptedLM(lambda _: block("SUBMIT(answer=[question])")), {"display_progress": False}
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        for _ in range(times):
            dspy.Evaluate(devset=four_questions(), metric=metric, num_threads=4, **settings)(RLM(SIGNATURE))


@pytest.mark.parametrize(("seconds", "times"), [(10.0, 4), (0.0, 2)], ids=["idle machine", "busy machine"])
def test_every_score_of_evaluate_is_logged(
    store: Store, seconds: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow enters scores before the traces are there, and loses them; on a busy machine these come late."""
    monkeypatch.setattr(export_queue, "_SCORED_AFTER_SECONDS", seconds)

    def right(example: dspy.Example, prediction: dspy.Prediction, _trace: Any = None) -> bool:
        return example.gold in prediction.answer

    evaluate(right, times)
    traces = store.traces()
    scores = [assessment for trace in traces for assessment in trace.info.assessments]
    assert len(traces) == 4 * times
    assert [(each.name, each.value) for each in scores] == [("right", True)] * 4 * times


def test_each_side_of_a_comparison_has_a_run_of_its_own(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """In the run around it: one run holds the parameters, the score and the table of one program only."""
    candidate, incumbent = RLM(SIGNATURE), RLM(SIGNATURE)
    candidate.act.signature = candidate.act.signature.with_instructions("Look first.")
    lm = ScriptedLM(lambda _: block("SUBMIT(answer=[question])"))
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter), mlflow.start_run() as around:
        compare(
            candidate, incumbent, four_questions(), lambda example, given, _=None: example.gold in given.answer
        )
        assert mlflow.active_run() is around
    runs = {run.info.run_name: run for run in mlflow.search_runs(output_format="list")}
    of = {name: runs[name].data.params["RLM.act.signature.instructions"] for name in ("candidate", "incumbent")}
    assert of["candidate"] == "Look first." != of["incumbent"]
    assert runs["incumbent"].data.tags["mlflow.parentRunId"] == around.info.run_id
    assert "Failed to log" not in caplog.text


class Judge:
    """A metric with feedback, which is no function; it asks a program too, and fails once."""

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, _trace: Any = None) -> dspy.Prediction:
        """Return a score and why."""
        RLM(SIGNATURE)(context="c", question="Is it right?")
        if example.question == "3":
            raise ValueError("no opinion on 3")
        return dspy.Prediction(score=0.5, feedback=f"half of {prediction.answer[0]}")


def test_the_feedback_and_the_error_of_a_metric_are_logged_to_the_trace_of_the_prediction(store: Store) -> None:
    """Not to that of the program that the metric asks."""
    evaluate(Judge())
    told = set()
    for trace in store.traces():
        for each in trace.info.assessments:
            told.add((each.name, each.value, each.rationale or each.error.error_message))
            assert "Is it right?" not in trace.info.request_preview
    assert told == {
        *(("Judge", 0.5, f"half of {number}") for number in range(3)),
        ("Judge", None, "no opinion on 3"),
    }


def failing_first() -> ScriptedLM:
    """Return a model that needs three turns: an error, a refused SUBMIT, an answer that the text holds."""
    replies = iter([block("1 / 0"), block("SUBMIT(answer=5)"), block("SUBMIT(answer=['moon', 'cheese'])")])
    return ScriptedLM(lambda _: next(replies))


SCORES = {"turns": 3.0, "code_errors": 1.0, "refused_submits": 1.0, "sub_calls": 0.0, "grounded": 0.5}


def test_our_scorers_are_metrics_of_dspy(store: Store) -> None:
    """Each takes an example and a prediction; what is not known is nan."""
    example = dspy.Example(context="The moon.", question="Which?").with_inputs("context", "question")
    pred = call(RLM(SIGNATURE), failing_first(), "blocking", **example.inputs())
    found = {each.name: each(example, pred) for each in tracing.scorers.ALL}
    assert math.isnan(found.pop("cost"))
    assert math.isnan(found.pop("coverage"))
    assert found == SCORES


def test_a_prediction_that_does_not_hold_its_run_has_unknown_turns(store: Store) -> None:
    """As of a program with an RLM inside: 0 turns and 0 errors would look perfect."""
    scores = {each.name: each(dspy.Example(), dspy.Prediction(text="")) for each in tracing.scorers.ALL}
    assert all(map(math.isnan, scores.values())), scores


def test_coverage_is_a_score_of_watched_runs_in_the_threads_of_evaluate_too(store: Store) -> None:
    """Of the text half is read; the question is not."""
    text = "The moon is far away, as every child knows. " * 4
    example = dspy.Example(context=text, question="").with_inputs("context", "question")
    lm = ScriptedLM(lambda _: block(f"x = context[:{len(text) // 2}]\nSUBMIT(answer=['moon'])"))
    settings = {"num_threads": 2, "display_progress": False}
    with watched(), dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        result = dspy.Evaluate(devset=[example] * 4, metric=tracing.scorers.coverage, **settings)(RLM(SIGNATURE))
    assert [score for *_, score in result.results] == [0.5] * 4
    traces = store.traces()
    assert [span(trace, "RLM").get_attribute("rlm.coverage") for trace in traces] == [0.5] * 4
    assert tracing.scorers.facts_of_trace(traces[0]).coverage == 0.5


@pytest.mark.filterwarnings("ignore:Starting with pandas version")  # MLflow's
def test_our_scorers_work_in_mlflows_evaluation(store: Store) -> None:
    """`mlflow.genai.evaluate` runs the program and scores its trace."""

    def program(context: str, question: str) -> dict[str, Any]:
        with dspy.context(lm=failing_first(), interpreter_factory=LocalPythonInterpreter):
            return {"answer": RLM(SIGNATURE)(context=context, question=question).answer}

    data = [{"inputs": {"context": "The moon.", "question": "Which?"}}]
    result = mlflow.genai.evaluate(data=data, predict_fn=program, scorers=list(tracing.scorers.ALL))
    assert {name: result.metrics[f"{name}/mean"] for name in SCORES} == SCORES


def test_a_policy_goes_to_the_registry_and_comes_back(store: Store, tmp_path: Path) -> None:
    """As a prompt with versions; `RLM(policy=...)` takes what is fetched."""
    shipped = signatures.shipped_policies()[0]
    address = tracing.register_policy(shipped, "finder")
    fetched = tracing.fetch_policy(address, tmp_path / "finder.json")
    assert address.startswith("prompts:/finder/")
    assert signatures.load_policy(fetched) == signatures.load_policy(shipped)
    assert tracing.fetch_policy("finder", tmp_path / "newest.json").read_bytes() == fetched.read_bytes()
    assert len(RLM("question -> answer", policy=fetched).act.demos) > 0


def test_a_prompt_that_is_no_policy_is_refused(store: Store, tmp_path: Path) -> None:
    """And leaves no file."""
    mlflow.genai.register_prompt("greeting", "Hello {{name}}")
    with pytest.raises(ValueError, match="greeting contains no policy"):
        tracing.fetch_policy("greeting", tmp_path / "policy.json")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_not_logged_with_a_key_in_a_tool(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names it; keys of LMs are taken out without a word."""
    monkeypatch.setenv("SEARCH_TOKEN", "tok-93jd02jd-planted")
    token = "tok-93jd02jd-planted"

    def find(word: str) -> str:
        """Find a word."""
        return word + token

    with pytest.raises(RLMError, match=r"contain 1 of your keys: tok\.\.\. \(20 characters\)"):
        tracing.log_model(RLM(SIGNATURE, tools=[find]))


def test_a_model_is_logged_while_progress_is_shown_and_a_log_is_written(store: Store, tmp_path: Path) -> None:
    """Neither can be pickled, and neither belongs to the model; the callback of tracing stays in it."""
    held: list[Any] = []

    def keep(*_: Any, **__: Any) -> None:
        held.extend(dspy.settings.callbacks)

    with (
        RunLog(tmp_path / "runs.jsonl"),
        dspy.context(callbacks=[*dspy.settings.callbacks, Progress()]),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(mlflow.dspy, "log_model", keep)
        tracing.log_model(RLM(SIGNATURE))
    assert [type(callback).__name__ for callback in held] == ["SpanCallback"]


def test_a_model_that_cannot_be_pickled_is_refused_with_where_to_look(store: Store) -> None:
    lock = threading.Lock()

    def find(word: str) -> str:
        """Find a word."""
        with lock:
            return word

    with pytest.raises(RLMError, match=r"cannot pickle '_thread.lock' object\. Look for a lock, .* in its tools"):
        tracing.log_model(RLM(SIGNATURE, tools=[find]))


HOSTILE_KEY = "pl\"an\\t&ed<KEY>'x/y=="
CUT_KEY = "sk-a-long-key-that-is-cut-0123456789"


def test_no_key_survives_quoting_or_being_cut_through(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON and HTML write it otherwise; a clipped output leaves a part of it."""
    monkeypatch.setenv("ODD_PASSWORD", HOSTILE_KEY)
    monkeypatch.setenv("LONG_API_KEY", CUT_KEY)
    code = "import json\nprint(context, repr(context), json.dumps(context))\nprint((question + ' ') * 200)"
    lm = ScriptedLM([block(code), block("SUBMIT(answer=[context])")])
    for chars in (403, 409, 415):  # somewhere else in a key each time
        lm.script.replies = [block(code), block("SUBMIT(answer=[context])")]
        rlm = RLM(SIGNATURE, limits=Limits(max_output_chars=chars))
        call(rlm, lm, "blocking", context=f"See {HOSTILE_KEY} here.", question=CUT_KEY)
    parts = {CUT_KEY[start : start + 12] for start in range(len(CUT_KEY) - 11)}
    for trace in store.traces():
        files = [file.read_text("utf-8") for file in store.files(trace)]
        assert len(files) == 2
        for text in (json.dumps(trace.to_dict()), *files):
            assert "ed<KEY>" not in text
            assert "&lt;KEY" not in text
            assert [part for part in parts if part in text] == []


@pytest.mark.parametrize("where", ["context", "question", "code", "answer", "prompt", "tag"])
def test_half_a_surrogate_pair_costs_no_trace(store: Store, where: str) -> None:
    half = "half \ud83d"
    given = {name: half if name == where else "x" for name in ("context", "question", "tag")}
    code = {
        "code": "print('\\ud83d')\nSUBMIT(answer=['x'])",
        "answer": "SUBMIT(answer=['\\ud83d'])",
        "prompt": "[failed] = llm_query_batched(['\\ud83d'])\nprint(failed)\nSUBMIT(answer=['x'])",
    }.get(where, "SUBMIT(answer=['x'])")
    lm = ScriptedLM(act=[block(code)], query=lambda _: half)
    with tracing.tags(kind=given.pop("tag"), session=half):
        call(RLM(SIGNATURE), lm, "blocking", **given)
    (trace,) = store.traces()
    assert span(trace, "turn 1: SUBMIT").outputs
    assert len(list(store.files(trace))) == 2


def test_no_part_of_a_trace_has_a_character_that_a_database_refuses() -> None:
    """PostgreSQL refuses NUL in a text, which a file that is read as text may hold; SQLite does not."""
    payloads = Payloads(Secrets())
    given = {"question": "a\0b", "more": {"a\0b": ["a\0b" * 500]}}
    told = json.dumps([payloads.value(given), payloads.variable("text", "a\0b"), payloads.error("a\0b", 100)])
    with tracing.tags(session="a\0b", kind="a\0b"):
        of_trace = json.dumps(trace_tags())
    assert "\\u0000" not in told + of_trace
    assert "a\\ufffdb" in told


def test_many_sub_calls_make_the_rest_of_a_trace_shorter_not_larger(store: Store) -> None:
    """Twenty turns, four long sub-calls in each; what each turn wrote and printed is still told."""
    ask = "r = llm_query_batched([str(i) + context[:30_000] for i in range(4)])\nprint(context[:20_000], r)"
    turns = [block(f"print('this is turn {number}')\n{ask}") for number in range(1, 20)]
    lm = ScriptedLM(act=[*turns, block("SUBMIT(answer=['x'])")], query=lambda _: "word " * 1_500)
    rlm = RLM(SIGNATURE, limits=Limits(max_llm_calls=200), cache=False)
    call(rlm, lm, "blocking", context="The moon is far away. " * 5_000, question="Which?")
    (trace,) = store.traces()
    assert int(trace.info.trace_metadata["mlflow.trace.sizeBytes"]) < 1_000_000
    for number in range(1, 20):
        turn = span(trace, f"turn {number}")
        assert f"this is turn {number}" in turn.inputs["code"]
        assert f"this is turn {number}" in turn.outputs["output"]


def test_the_list_of_traces_shows_question_and_answer_of_a_program_around_a_run(store: Store) -> None:
    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rlm = RLM(SIGNATURE)

        def forward(self, context: str, question: str) -> dspy.Prediction:
            return self.rlm(context=context, question=question)

    lm = ScriptedLM([block("SUBMIT(answer=['the moon' + context[:0]])")])
    call(Program(), lm, "blocking", context="long " * 150, question="Which one?")
    info = store.trace().info
    assert info.request_preview == "Which one?"
    assert info.response_preview == "['the moon']"


def test_what_is_no_trace_is_not_cut_shorter_the_more_there_was() -> None:
    """Tables of evaluations are written all through the life of a process."""
    table, trace = Payloads(Secrets()), Payloads(Secrets(), one_trace=True)
    text = "word " * 400
    for _ in range(300):
        table.text(text, 2_000)
        trace.text(text, 2_000)
    assert table.text(text, 2_000) == text
    assert len(trace.text(text, 2_000)) < 300


def test_secrets_may_be_learned_while_texts_are_searched() -> None:
    """Models come and go in other threads."""
    secrets = Secrets()
    secrets.learn({"the-first-secret"})

    def learn() -> None:
        for number in range(200):
            secrets.learn({f"secret-number-{number:06}"})

    threads = [threading.Thread(target=learn) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert secrets.hide("a the-first-secret ... b") == "a *** ... b"
    for thread in threads:
        thread.join()
    assert secrets.hide("secret-number-000199") == "***"


@pytest.mark.parametrize("store", ["foo.db", "bad://x", "sqlite://foo.db"])
def test_a_store_that_cannot_be_opened_is_refused_and_nothing_is_configured(store: str) -> None:
    """With the address of a database file; runs print no warnings then."""
    before = (dict(dspy.settings.config), dict(os.environ), mlflow.get_tracking_uri())
    with pytest.raises(ValueError, match=f"Invalid store '{store}'.* 'sqlite:///(foo|mlflow).db'"):
        tracing.autolog(store=store, experiment="new")
    assert (dict(dspy.settings.config), dict(os.environ), mlflow.get_tracking_uri()) == before


def test_a_store_that_cannot_be_written_is_one_error_that_names_the_settings(
    store: Store, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow logs pages about it."""
    monkeypatch.chdir(tmp_path)  # MLflow makes the folder `file:`
    mlflow.set_tracking_uri(f"sqlite:///file:{store.folder / 'mlflow.db'}?mode=ro&uri=true")
    with pytest.raises(ValueError, match=r"MLflow opens no run in .* MLFLOW_TRACKING_URI.* readonly database"):
        tracing.logged_run("a run").__enter__()
    assert not caplog.records
    mlflow.set_tracking_uri(store.uri)
