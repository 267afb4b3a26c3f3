"""The facts that DSPy's own tests of `dspy.RLM` state, in other words; each holds for both classes, or says so.

They are those of `tests/predict/test_rlm.py` on DSPy's main branch at 4ed377ee (2026-08-21; the file was last
changed in 75001719). What is not here is in `test_upstream_habits`, or is about private names, DSPy's doubles,
and the sandbox of its own interpreter.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from dspy.utils.dummies import DummyLM
from pydantic import BaseModel

import rlm_dspy
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter, ScriptedInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.optimize.test_upstream_habits import act
from tests.playing import fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages

ASK = "query -> answer"
BOTH = [dspy.RLM, rlm_dspy.RLM]
both = pytest.mark.parametrize("rlm_class", BOTH, ids=["dspy", "rlm_dspy"])
ours = pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter], ids=["confined", "local"])


def call(rlm: Any, *replies: Any, factory: Any = dspy.LocalInterpreter, **inputs: Any) -> Any:
    """Call the program on scripted replies."""
    lm = replies[0] if isinstance(replies[0], dspy.BaseLM) else ScriptedLM(replies)
    with dspy.context(lm=lm, interpreter_factory=factory):
        return rlm(**(inputs or {"query": "?"}))


@both
def test_what_was_passed_can_be_read(rlm_class: Any) -> None:
    """With the defaults of `dspy.RLM`."""
    rlm = rlm_class("context, query -> answer", max_iters=5)
    assert (rlm.max_iters, rlm.max_llm_calls, rlm.max_output_chars, rlm.verbose) == (5, 50, 10_000, False)
    assert (rlm.tools, rlm.sub_lm) == ({}, None)
    assert list(rlm.signature.fields) == ["context", "query", "answer"]


@both
@pytest.mark.parametrize("name", ["invalid-name", "123start", "for", "llm_query", "SUBMIT", "print"])
def test_tools_need_a_free_python_name(rlm_class: Any, name: str) -> None:
    """A `ValueError` names it."""
    with pytest.raises(ValueError, match=name):
        rlm_class(ASK, tools=[dspy.Tool(lambda: "a", name=name)])


@both
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tools": ["not a function"]}, TypeError, "must be callable"),
        ({"tools": {"lookup": len}}, TypeError, "must be a list, not a dict"),
        ({"tools": [dspy.Tool(lambda: 1, name="lookup")] * 2}, ValueError, "Duplicate tool name 'lookup'"),
        ({"tools": [dspy.Tool(lambda: 1, name="query")]}, ValueError, r"\['query'\]"),
        ({"interpreter": ScriptedInterpreter([])}, TypeError, "interpreter"),
        ({"interpreter_factory": ScriptedInterpreter([])}, TypeError, "interpreter_factory"),
    ],
)
def test_what_is_refused_and_with_which_words(
    rlm_class: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """The words that programs may look for."""
    with pytest.raises(error, match=words):
        rlm_class(ASK, **options)


@both
@pytest.mark.parametrize("name", ["llm_query", "llm_query_batched", "SUBMIT", "print"])
def test_inputs_cannot_take_names_of_the_repl(rlm_class: Any, name: str) -> None:
    """Nor outputs those of the result."""
    with pytest.raises(ValueError, match="Input fields conflict"):
        rlm_class(f"{name} -> answer")
    for output in ("trajectory", "final_reasoning"):
        with pytest.raises(ValueError, match=f"Output fields conflict.*{output}"):
            rlm_class(f"context -> {output}")


@both
@pytest.mark.parametrize("awaiting", [False, True])
def test_wrong_inputs_are_told_before_an_interpreter_is_made(rlm_class: Any, awaiting: bool) -> None:
    """All that are missing, and each that nobody declared, whatever else has that name."""
    made: list[Any] = []

    def factory() -> Any:
        made.append(ScriptedInterpreter([]))
        return made[-1]

    rlm = rlm_class("a, b, c -> answer", tools=[dspy.Tool(lambda: 1, name="lookup")], interpreter_factory=factory)
    for inputs, named in (
        ({"a": 1}, ("b", "c")),
        *(({"a": 1, "b": 2, "c": 3, name: 4}, (name,)) for name in ("SUBMIT", "lookup", "tools", "interpreter")),
    ):
        with pytest.raises(ValueError, match=".*".join(f"'{name}'" for name in named)):
            asyncio.run(rlm.acall(**inputs)) if awaiting else rlm(**inputs)
    assert made == []


@both
def test_a_factory_that_makes_no_interpreter_is_a_type_error(rlm_class: Any) -> None:
    """It names what came instead."""
    with pytest.raises(TypeError, match="NoneType"):
        call(rlm_class(ASK, interpreter_factory=lambda: None), act("1"))


@both
def test_each_call_has_an_interpreter_of_its_own_that_is_shut_down(rlm_class: Any) -> None:
    """Called, awaited, and when the model's call raises."""
    made: list[Any] = []

    class Noted(dspy.LocalInterpreter):
        closed = False

        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def shutdown(self) -> None:
            self.closed = True
            super().shutdown()

    rlm = rlm_class(ASK, interpreter_factory=Noted)
    assert call(rlm, act("SUBMIT(answer='a')")).answer == "a"
    with dspy.context(lm=ScriptedLM([act("SUBMIT(answer='b')")])):
        assert asyncio.run(rlm.acall(query="?")).answer == "b"
    with pytest.raises(dspy.LMError):
        call(rlm, dspy.LMAuthError("no key"))
    assert [each.closed for each in made] == [True] * 3
    assert len({id(each) for each in made}) == 3


@both
def test_an_input_may_be_named_interpreter(rlm_class: Any) -> None:
    """It is a name like others."""
    rlm = rlm_class("interpreter -> answer")
    assert call(rlm, act("SUBMIT(answer=interpreter)"), interpreter="CPython").answer == "CPython"


@both
@pytest.mark.parametrize(
    "code",
    [
        "```python\nSUBMIT(answer='a')\n```",
        "```py\nx = 'a'\nSUBMIT(answer=x)\n```",
        "```\nSUBMIT(answer='a')\n```",
        "SUBMIT(answer='a')",
        "I'll inspect first.\n```python\nSUBMIT(answer='a')\n```\nThen I will submit.",
        "```python\nSUBMIT(answer='a')",
        "```\n```python\nSUBMIT(answer='a')\n```\n```",
    ],
)
def test_code_is_found_in_its_fences(rlm_class: Any, code: str) -> None:
    """Marked, bare, none, unclosed, doubled; with words around it."""
    assert call(rlm_class(ASK), fields(reasoning="r", code=code)).answer == "a"


@both
@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ('```json\n{"a": 1}\n```', "json"),
        ("```bash\nls -la\n```", "bash"),
        ("```python\ndef incomplete(\n```", "("),
        ("```python\nprint(x)\n```", "not defined"),
    ],
)
def test_code_that_cannot_run_is_told_and_the_run_goes_on(rlm_class: Any, code: str, kept: str) -> None:
    """Other languages, what does not parse, what raises."""
    pred = call(rlm_class(ASK), fields(reasoning="r", code=code), act("SUBMIT(answer='recovered')"))
    assert pred.answer == "recovered"
    assert kept in pred.trajectory[0]["output"]


@both
def test_the_trajectory_keeps_code_without_its_fence(rlm_class: Any) -> None:
    """Also of a turn that failed."""
    pred = call(rlm_class(ASK), act("print(x)"), act("SUBMIT(answer='a')"))
    assert [step["code"] for step in pred.trajectory] == ["print(x)", "SUBMIT(answer='a')"]


@both
def test_the_model_reads_names_types_sizes_descriptions_and_constraints(rlm_class: Any) -> None:
    """Of the inputs; a long one by its beginning, and its size."""

    class Sums(dspy.Signature):
        """Add up."""

        text: str = dspy.InputField(desc="Background information")
        most: int = dspy.InputField(desc="At most", ge=0, le=100)
        total: int = dspy.OutputField()

    lm = ScriptedLM([act("SUBMIT(total=len(text))")])
    call(rlm_class(Sums), lm, text="a" * 5_000 + "b" * 5_000, most=3)
    told = str(lm.script.calls[0])
    for words in ("Add up.", "Background information", "At most", "greater than or equal to", "aaaa", "int"):
        assert words in told
    assert "10,000" in told
    assert "a" * 4_000 not in told
    assert all(name in told for name in ("llm_query", "llm_query_batched", "SUBMIT", "total"))


@both
def test_long_outputs_are_cut_between_head_and_tail(rlm_class: Any) -> None:
    """And an empty one is told as such."""
    lm = ScriptedLM([act("print('h' * 500 + 't' * 500)"), act("x = 1"), act("SUBMIT(answer='a')")])
    call(rlm_class(ASK, max_output_chars=100), lm)
    told = str(lm.script.calls[2])
    assert "h" * 50 in told
    assert "t" * 30 in told
    assert "h" * 200 not in told
    assert "900" in told
    assert "no output" in told


@both
@pytest.mark.parametrize(
    ("of", "code", "value"),
    [
        ("int", "SUBMIT(42)", 42),
        ("float", "SUBMIT(3.14)", 3.14),
        ("bool", "SUBMIT(True)", True),
        ("list[int]", "SUBMIT([1, 2, 3])", [1, 2, 3]),
        ("dict[str, str]", "SUBMIT({'key': 'value'})", {"key": "value"}),
        ("Literal['yes', 'no']", "SUBMIT('yes')", "yes"),
        ("int", "result = 42\nSUBMIT(result)", 42),
    ],
)
def test_one_output_is_submitted_bare_and_comes_back_typed(rlm_class: Any, of: str, code: str, value: Any) -> None:
    """By position."""
    found = call(rlm_class(f"query -> value: {of}"), act(code)).value
    assert found == value
    assert type(found) is type(value)


@both
@pytest.mark.parametrize(
    "code",
    [
        "SUBMIT(name='alice', count=5, active=True)",
        "SUBMIT('alice', 5, True)",
        "n, c = 'alice', 5\nSUBMIT(n, c, n is not None)",
    ],
)
def test_several_outputs_are_submitted_by_name_or_in_order(rlm_class: Any, code: str) -> None:
    """Values or variables."""
    pred = call(rlm_class("query -> name: str, count: int, active: bool"), act(code))
    assert (pred.name, pred.count, pred.active) == ("alice", 5, True)


@both
@pytest.mark.parametrize("wrong", ["SUBMIT(kind='yes')", "SUBMIT(kind='maybe', count=5)"])
def test_a_submit_that_does_not_fit_is_told_and_the_next_one_counts(rlm_class: Any, wrong: str) -> None:
    """A field that is missing, or none of the literals."""
    rlm = rlm_class("query -> kind: Literal['yes', 'no'], count: int")
    pred = call(rlm, act(wrong), act("SUBMIT(kind='yes', count=5)"))
    assert (pred.kind, pred.count, len(pred.trajectory)) == ("yes", 5, 2)


@both
@pytest.mark.parametrize("code", ["llm_query('one')", "llm_query_batched(['one'])[0]"])
def test_sub_calls_are_made_in_the_context_of_the_call(rlm_class: Any, code: str) -> None:
    """With the LM that is set there, and its context variables."""
    marker = contextvars.ContextVar("marker", default="global")

    def reply(messages: Messages) -> str:
        return marker.get() if messages[-1]["content"] == "one" else act(f"SUBMIT(answer={code})")

    marker.set("request")
    assert call(rlm_class(ASK), ScriptedLM(reply)).answer == "request"


@both
def test_threads_share_one_count_of_sub_calls(rlm_class: Any) -> None:
    """As many as are allowed are made; one more is a `RuntimeError` in the code."""
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(5) as pool:\n    said = list(pool.map(llm_query, [f'p{n}' for n in range(10)]))\n"
        "try:\n    llm_query('one more')\nexcept RuntimeError as error:\n    said.append(str(error))\n"
        "SUBMIT(answer=str(len(said)) + said[-1])"
    )
    lm = ScriptedLM(lambda messages: "ok" if messages[-1]["content"].startswith("p") else act(code))
    answer = call(rlm_class(ASK, max_llm_calls=10), lm).answer
    assert answer.startswith("11")
    assert "10" in answer[2:]
    assert sum(messages[-1]["content"].startswith("p") for messages in lm.script.calls) == 10


def test_an_item_of_a_batch_that_fails_is_false_and_says_why() -> None:
    """In `dspy.RLM` it is a text that begins with `[ERROR]`; and an error that is no LM's loses the others."""
    asked = "found = llm_query_batched(['bad', 'worse', 'good'])"
    code = f"{asked}\nSUBMIT(answer=str([bool(f) for f in found]) + str(found))"

    def reply(messages: Messages) -> Any:
        said = {"bad": dspy.LMTransportError("LM failed"), "worse": TypeError("invalid LM"), "good": "fine"}
        return said.get(messages[-1]["content"], act(code))

    answer = call(rlm_dspy.RLM(ASK), ScriptedLM(reply)).answer
    assert answer.startswith("[False, False, True]")
    assert all(words in answer for words in ("LM failed", "invalid LM", "fine"))


class Payload(BaseModel):
    value: int


@ours
def test_tools_are_dspys_with_their_types_and_callbacks(factory: Any) -> None:
    """Async ones too: arguments are read into models, and whoever listens hears of each call once."""
    received: list[Any] = []
    heard: list[Any] = []

    async def score(payload: Payload, factor: int = 2) -> int:
        received.append((payload, factor))
        return payload.value * factor

    class Recorder(BaseCallback):
        def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            heard.append(instance.name)

        def on_tool_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
            heard.append(outputs)

    rlm = rlm_dspy.RLM("query -> answer: int", tools=[dspy.Tool(score, name="score_payload")])
    with dspy.context(callbacks=[Recorder()]):
        assert call(rlm, act("SUBMIT(score_payload({'value': 3}))"), factory=factory).answer == 6
    assert received == [(Payload(value=3), 2)]
    assert heard == ["score_payload", 6]


def test_an_interpreter_that_dies_is_replaced() -> None:
    """`dspy.RLM` raises; ours goes on in a fresh one, and raises if none can be started."""
    made: list[Any] = []

    def factory() -> Any:
        made.append(None)
        if len(made) == 3:
            raise dspy.CodeInterpreterError("none left")
        return ScriptedInterpreter([dspy.CodeInterpreterError("protocol corrupt")])

    rlm = rlm_dspy.RLM(ASK, interpreter_factory=factory)
    with pytest.raises(dspy.CodeInterpreterError, match="none left") as caught:
        call(rlm, act("1"), act("2"))
    assert [step["kind"] for step in vars(caught.value)["trajectory"]] == ["interpreter_lost", "error"]


@pytest.mark.parametrize("awaiting", [False, True])
@ours
def test_dspys_dummy_lm_drives_a_whole_run(factory: Callable[[], Any], awaiting: bool) -> None:
    """Variables, several turns, typed answers: in our own interpreters."""
    replies = [
        {"reasoning": "Explore.", "code": "x = sum(numbers)\nprint(f'x = {x}')"},
        {"reasoning": "Return.", "code": "SUBMIT(x * 2)"},
    ]
    rlm = rlm_dspy.RLM("numbers: list[int], nothing -> total: int")
    with dspy.context(lm=DummyLM(replies), interpreter_factory=factory):
        inputs = {"numbers": [1, 2, 3], "nothing": None}
        pred = asyncio.run(rlm.acall(**inputs)) if awaiting else rlm(**inputs)
    assert (pred.total, len(pred.trajectory), pred.trajectory[0]["output"].strip()) == (12, 2, "x = 6")


@ours
def test_an_interpreter_alone_keeps_to_dspys_protocol(factory: Callable[[], Any]) -> None:
    """Variables with None inside, tools by name and by position, state, imports, errors by their kind."""
    with factory() as interpreter:
        interpreter.tools.update({"echo": lambda message="": f"Echo: {message}", "info": lambda: {"n": [1, 2]}})
        given = {"items": [1, None, 3], "nested": {"inner": {"value": None}}}
        code = "print(items[1], nested['inner']['value'], echo(message='a'), echo('b'), info()['n'][1])"
        assert "None None Echo: a Echo: b 2" in interpreter.execute(code, variables=given)
        interpreter.execute("import json\nfrom collections import Counter\nx = 10")
        assert "15" in interpreter.execute("print(x + 5, json.dumps({'key': 1}))")
        with pytest.raises(SyntaxError):
            interpreter.execute("def incomplete(")
        with pytest.raises(dspy.CodeExecutionError):
            interpreter.execute("undefined_variable")
