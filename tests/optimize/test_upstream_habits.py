"""Programs written for `dspy.RLM` run on ours by a change of import: only the class differs here."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from typing import TYPE_CHECKING, Any, Literal

import dspy
import pytest
from dspy.primitives.sandbox_serializable import SandboxSerializable
from pydantic import BaseModel

import rlm_dspy
from rlm_dspy.testing import ScriptedLM
from tests.playing import fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ASK = "question -> answer"


class UserInterpreter:
    """Runs code in this process, as a user of `dspy.RLM` writes an interpreter: the protocol and no more."""

    execution_instructions = "Plain Python in a namespace that persists."

    def __init__(self, tools: dict[str, Callable[..., Any]] | None = None) -> None:
        self._tools = dict(tools or {})
        self._namespace: dict[str, Any] = {}
        self.running = False

    @property
    def tools(self) -> dict[str, Callable[..., Any]]:
        return self._tools

    def start(self) -> None:
        self.running = True

    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        submitted: list[dict[str, Any]] = []

        class Submitted(BaseException):
            pass

        def submit(**values: Any) -> None:
            submitted.append(values)
            raise Submitted

        self._namespace.update({**self._tools, **(variables or {}), "SUBMIT": submit})
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, self._namespace)
        except Submitted:
            return dspy.FinalOutput(submitted[0])
        except SyntaxError:
            raise
        except Exception as error:
            raise dspy.CodeExecutionError(f"{type(error).__name__}: {error}") from error
        return printed.getvalue() or None

    def shutdown(self) -> None:
        self.running = False


@pytest.fixture(params=[dspy.RLM, rlm_dspy.RLM], ids=["dspy", "rlm_dspy"])
def rlm_class(request: pytest.FixtureRequest) -> Any:
    """The class that the program imports."""
    return request.param


def act(code: str, reasoning: str = "Next.") -> str:
    """Return a reply in the form that `dspy.RLM` asks for; ours reads it too."""
    return fields(reasoning=reasoning, code=f"```python\n{code}\n```")


def run(rlm: Any, *replies: Any, **inputs: Any) -> Any:
    """Call the program on scripted replies, with DSPy's local interpreter unless it brings its own."""
    with dspy.context(lm=ScriptedLM(replies), interpreter_factory=dspy.LocalInterpreter):
        return rlm(**inputs)


def test_a_run_gives_answer_trajectory_and_final_reasoning(rlm_class: Any) -> None:
    """The fields of the result have the names they had."""
    replies = [act("print(len(context))", "Measure."), act("SUBMIT(answer='short')", "It is short.")]
    pred = run(rlm_class("context, question -> answer"), *replies, context="abc", question="?")
    assert pred.answer == "short"
    assert pred.final_reasoning == "It is short."
    first, last = pred.trajectory
    assert (first["reasoning"], first["code"], first["output"].strip()) == ("Measure.", "print(len(context))", "3")
    assert last["code"] == "SUBMIT(answer='short')"


def test_the_constructor_takes_the_same_names_and_positions(rlm_class: Any) -> None:
    """All eight by position, all eight by keyword."""
    lm = ScriptedLM([])
    rlm_class(ASK, 5, 6, 700, True, [len], lm, dspy.LocalInterpreter)
    rlm = rlm_class(
        signature=ASK,
        max_iters=5,
        max_llm_calls=6,
        max_output_chars=700,
        verbose=False,
        tools=[],
        sub_lm=lm,
        interpreter_factory=dspy.LocalInterpreter,
    )
    assert isinstance(rlm, dspy.Module)
    assert rlm.sub_lm is lm


class Section(BaseModel):
    title: str
    pages: int


class Contents(dspy.Signature):
    """List the sections that matter."""

    sections: list[Section] = dspy.InputField(desc="all of them")
    most: int = dspy.InputField()
    chosen: list[Section] = dspy.OutputField(desc="the longest")
    pages: dict[str, int] = dspy.OutputField()
    size: Literal["short", "long"] = dspy.OutputField()
    share: float = dspy.OutputField()
    complete: bool = dspy.OutputField()


def test_typed_outputs_come_back_typed(rlm_class: Any) -> None:
    """Models, dicts, literals, floats and booleans."""
    code = "SUBMIT(chosen=[{'title': 'a', 'pages': 9}], pages={'a': 9}, size='long', share=0.5, complete=True)"
    pred = run(rlm_class(Contents), act("print(most)"), act(code), sections=[], most=1)
    assert pred.chosen == [Section(title="a", pages=9)]
    assert (pred.pages, pred.size, pred.share, pred.complete) == ({"a": 9}, "long", 0.5, True)


def test_a_refused_submit_can_be_corrected(rlm_class: Any) -> None:
    """The error is shown, and the next SUBMIT counts."""
    replies = [act("SUBMIT(n='many')"), act("SUBMIT(n=3)")]
    pred = run(rlm_class("question -> n: int"), *replies, question="?")
    assert pred.n == 3
    assert "many" in pred.trajectory[0]["output"]


def test_plain_containers_are_inputs(rlm_class: Any) -> None:
    """Lists, dicts, numbers and None."""
    code = "SUBMIT(answer=str([items[1], table['a'], number, nothing]))"
    rlm = rlm_class("items: list, table: dict, number: float, nothing -> answer")
    pred = run(rlm, act(code), items=[1, 2], table={"a": [3]}, number=0.5, nothing=None)
    assert pred.answer == "[2, [3], 0.5, None]"


def test_instructions_of_the_signature_reach_the_model(rlm_class: Any) -> None:
    """Wherever they stand, the model reads the task and the descriptions of the outputs."""
    lm = ScriptedLM([act("SUBMIT(answer='a')")])
    signature = dspy.Signature(ASK, "Answer like a pirate.")
    with dspy.context(lm=lm, interpreter_factory=dspy.LocalInterpreter):
        rlm_class(signature)(question="?")
    assert "Answer like a pirate." in str(lm.script.calls[0])


def search(query: str, most: int = 2) -> list[str]:
    """Find passages."""
    return [f"{query} {number}" for number in range(most)]


async def fetch(page: int) -> str:
    """Fetch a page."""
    return f"page {page}"


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("search(query='a')", "['a 0', 'a 1']"),
        ("search(query='a', most=1)", "['a 0']"),
        ("look(query='b', most=1)", "['b 0']"),
        ("fetch(page=3)", "page 3"),
        ("lines(query='c')", "c 0"),
    ],
)
def test_tools_are_called_by_name(rlm_class: Any, call: str, answer: str) -> None:
    """Functions and `dspy.Tool`s, sync and async, with their defaults."""
    tools = [search, dspy.Tool(search, name="look"), fetch, dspy.Tool(lambda query: f"{query} 0", name="lines")]
    pred = run(rlm_class(ASK, tools=tools), act(f"SUBMIT(answer=str({call}))"), question="?")
    assert pred.answer == answer


def test_an_error_in_a_tool_is_shown_to_the_code(rlm_class: Any) -> None:
    """It can be caught there, and else is an observation."""

    def broken(page: int) -> str:
        """Fail."""
        raise FileNotFoundError(f"no page {page}")

    replies = [act("broken(page=7)"), act("SUBMIT(answer='without')")]
    pred = run(rlm_class(ASK, tools=[broken]), *replies, question="?")
    assert "no page 7" in pred.trajectory[0]["output"]
    assert pred.answer == "without"


def test_tools_are_kept_by_name(rlm_class: Any) -> None:
    """`rlm.tools` maps names to `dspy.Tool`s."""
    tools = rlm_class(ASK, tools=[search]).tools
    assert list(tools) == ["search"]
    assert isinstance(tools["search"], dspy.Tool)


def test_llm_query_and_its_batch_reach_the_lm(rlm_class: Any) -> None:
    """The names in the REPL are the same."""
    code = "SUBMIT(answer=llm_query('one?') + ' ' + ' '.join(llm_query_batched(['two?', 'three?'])))"
    lm = ScriptedLM(
        lambda messages: {"one?": "1", "two?": "2", "three?": "3"}.get(messages[-1]["content"], act(code))
    )
    with dspy.context(lm=lm, interpreter_factory=dspy.LocalInterpreter):
        assert rlm_class(ASK)(question="?").answer == "1 2 3"


def test_a_sub_lm_answers_the_sub_calls(rlm_class: Any) -> None:
    """And the root model does not."""
    sub_lm = ScriptedLM(["small"])
    assert run(rlm_class(ASK, sub_lm=sub_lm), act("SUBMIT(answer=llm_query('x'))"), question="?").answer == "small"
    assert len(sub_lm.script.calls) == 1


def test_sub_calls_over_the_limit_fail_in_the_code(rlm_class: Any) -> None:
    """The run goes on."""
    replies = [act("llm_query('x')"), act("SUBMIT(answer='without')")]
    pred = run(rlm_class(ASK, max_llm_calls=0), *replies, question="?")
    assert pred.answer == "without"
    assert "0" in pred.trajectory[0]["output"]


def test_a_custom_interpreter_of_the_protocol_alone_is_enough(rlm_class: Any) -> None:
    """Tools, start, execute, shutdown; made for the run and shut down after it."""
    made: list[UserInterpreter] = []

    def factory() -> UserInterpreter:
        made.append(UserInterpreter())
        return made[-1]

    replies = [act("seen = search(query=question, most=1)"), act("SUBMIT(answer=seen[0])")]
    pred = run(rlm_class(ASK, tools=[search], interpreter_factory=factory), *replies, question="why")
    assert pred.answer == "why 0"
    assert [interpreter.running for interpreter in made] == [False]


def test_the_interpreter_may_be_chosen_at_the_call(rlm_class: Any) -> None:
    """`interpreter_factory=` of the call wins over that of the constructor."""
    used: list[str] = []

    def named(name: str) -> Callable[[], UserInterpreter]:
        def factory() -> UserInterpreter:
            used.append(name)
            return UserInterpreter()

        return factory

    rlm = rlm_class(ASK, interpreter_factory=named("module"))
    replies = [act("SUBMIT(answer='a')")] * 2
    run(rlm, *replies, question="?", interpreter_factory=named("call"))
    run(rlm, *replies, question="?")
    assert used == ["call", "module"]


def test_the_interpreter_may_be_chosen_by_settings(rlm_class: Any) -> None:
    """`dspy.context(interpreter_factory=...)` serves modules that name none."""
    used: list[str] = []

    def factory() -> UserInterpreter:
        used.append("settings")
        return UserInterpreter()

    rlm = rlm_class(ASK)
    with dspy.context(lm=ScriptedLM([act("SUBMIT(answer='a')")]), interpreter_factory=factory):
        assert rlm(question="?").answer == "a"
    assert used == ["settings"]


def test_execution_instructions_of_the_factory_reach_the_model(rlm_class: Any) -> None:
    """The model is told where its code runs."""
    lm = ScriptedLM([act("SUBMIT(answer='a')")])
    with dspy.context(lm=lm):
        rlm_class(ASK, interpreter_factory=UserInterpreter)(question="?")
    assert UserInterpreter.execution_instructions in str(lm.script.calls[0])


async def test_acall_gives_what_the_call_gives(rlm_class: Any) -> None:
    """The async way has the same result."""
    replies = [act("print('x')"), act("SUBMIT(answer='a')", "Sure.")]
    with dspy.context(lm=ScriptedLM(replies), interpreter_factory=dspy.LocalInterpreter):
        pred = await rlm_class(ASK).acall(question="?")
    assert (pred.answer, pred.final_reasoning, len(pred.trajectory)) == ("a", "Sure.", 2)


class Table(SandboxSerializable):
    """A value that is rebuilt in the REPL from text or bytes."""

    def __init__(self, rows: list[list[int]], *, binary: bool = False) -> None:
        self.rows = rows
        self.binary = binary

    def sandbox_setup(self) -> str:
        return "import json"

    def to_sandbox(self) -> bytes:
        return (b"\xff\xfe" if self.binary else b"") + json.dumps(self.rows).encode()

    def sandbox_assignment(self, var_name: str, data_expr: str) -> str:
        return (
            f"{var_name} = json.loads({data_expr}[2:])" if self.binary else f"{var_name} = json.loads({data_expr})"
        )

    def rlm_preview(self, max_chars: int = 500) -> str:
        return f"Table of {len(self.rows)} rows"


@pytest.mark.parametrize("binary", [False, True])
def test_a_sandbox_serializable_input_is_rebuilt_in_the_repl(rlm_class: Any, binary: bool) -> None:
    """From text and from bytes; the model reads its preview and what is imported for it."""
    lm = ScriptedLM([act("SUBMIT(answer=str(sum(map(sum, table))))")])
    with dspy.context(lm=lm, interpreter_factory=dspy.LocalInterpreter):
        pred = rlm_class("table: dict -> answer")(table=Table([[1, 2], [3]], binary=binary))
    assert pred.answer == "6"
    assert "Table of 2 rows" in str(lm.script.calls[0])
    assert "import json" in str(lm.script.calls[0])


@pytest.mark.parametrize("inputs", [{}, {"question": "?", "extra": 1}, {"extra": 1}])
def test_missing_or_unknown_inputs_are_a_value_error(rlm_class: Any, inputs: dict[str, Any]) -> None:
    """Raised before a model is called."""
    with pytest.raises(ValueError, match=r"question|extra"):
        run(rlm_class(ASK), **inputs)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tools": {"search": search}}, TypeError),
        ({"tools": [3]}, TypeError),
        ({"tools": [search, search]}, ValueError),
        ({"tools": [dspy.Tool(search, name="llm_query")]}, ValueError),
        ({"tools": [dspy.Tool(search, name="question")]}, ValueError),
        ({"interpreter_factory": 3}, TypeError),
        ({"interpreter_factory": UserInterpreter()}, TypeError),
    ],
)
def test_wrong_arguments_are_refused_with_the_same_kind_of_error(
    rlm_class: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    """A program that catches them goes on catching them."""
    with pytest.raises(error):
        rlm_class(ASK, **options)


@pytest.mark.parametrize("signature", ["SUBMIT -> answer", "interpreter_factory -> answer", "q -> trajectory"])
def test_reserved_names_are_refused_with_the_same_kind_of_error(rlm_class: Any, signature: str) -> None:
    """Names of the REPL, of the call and of the result."""
    with pytest.raises(ValueError, match=r"reserved|conflict"):
        rlm_class(signature)


def test_out_of_turns_the_answer_is_extracted(rlm_class: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning, and with the trajectory."""
    with caplog.at_level(logging.WARNING):
        replies = [act("print('seven')"), fields(n="7")]
        pred = run(rlm_class("question -> n: int", max_iters=1), *replies, question="?")
    assert pred.n == 7
    assert len(pred.trajectory) == 1
    assert any("extract" in message or "trajectory" in message for message in caplog.messages)


def test_verbose_logs_the_code(rlm_class: Any, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, on a logger of DSPy."""
    with caplog.at_level(logging.INFO):
        run(rlm_class(ASK, verbose=True), act("print(6 * 7)"), act("SUBMIT(answer='a')"), question="?")
    assert any("print(6 * 7)" in record.message and record.name.startswith("dspy") for record in caplog.records)


def test_a_saved_program_loads(rlm_class: Any, tmp_path: Path) -> None:
    """State goes through a file and runs again."""
    path = str(tmp_path / "program.json")
    rlm_class(ASK).save(path)
    loaded = rlm_class(ASK)
    loaded.load(path)
    assert run(loaded, act("SUBMIT(answer='a')"), question="?").answer == "a"


def test_a_module_inside_a_program_is_found_by_optimizers(rlm_class: Any) -> None:
    """Composition, `set_lm`, and copies work on the enclosing program."""

    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rlm = rlm_class(ASK)

        def forward(self, question: str) -> Any:
            return self.rlm(question=question)

    program, lm = Program().deepcopy(), ScriptedLM([act("SUBMIT(answer='a')")])
    program.set_lm(lm)
    assert program.named_predictors()
    with dspy.context(interpreter_factory=dspy.LocalInterpreter):
        assert program(question="?").answer == "a"
