"""What holds no answer is refused in every REPL: the text that Python prints for an object is none."""

from __future__ import annotations

import gc
from typing import Any, Literal

import dspy
import pytest
from pydantic import BaseModel, model_validator

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.repl.coercion import read_value
from rlm_dspy.testing import ScriptedLM
from tests.crossing import every_interpreter, signature
from tests.playing import block

NO_TEXT = {
    "a call that was not awaited": "llm_query.acall('Who?')",
    "a function": "llm_query",
    "a sub": "find",
    "an iterator": "map(str, [1])",
    "an error": "ValueError('no')",
    "a list of numpy": "__import__('numpy').arange(3)",
    "a table": "__import__('pandas').DataFrame({'a': [1]})",
    "an object of the REPL's own class": "type('Page', (), {})()",
    "the inputs": "INPUTS",
}


def refusal(factory: Any, code: str, kind: Any, then: Any = None) -> str:
    """Return what the model is told of a SUBMIT that is refused; its next one, of `then`, is taken."""
    made = signature({"x": 1}, answer=kind)
    lm = ScriptedLM([block(code), block(f"SUBMIT(answer={then!r})")], extract=[])
    with dspy.context(lm=lm):
        rlm = RLM(made, subs={"find": "passage -> name"}, interpreter_factory=factory, max_iters=2)
        prediction = rlm(x=1)
    if "acall" in code:
        gc.collect()  # a coroutine that was not awaited warns here, where it is ignored, not in a later test
    assert prediction.stop == "submitted"
    assert prediction.answer == then
    return str(prediction.trajectory[0]["output"])


@every_interpreter
@pytest.mark.parametrize("value", NO_TEXT.values(), ids=NO_TEXT.keys())
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_object_is_no_text(factory: Any, value: str) -> None:
    """The answer would be `<coroutine object ...>`, or the first and last rows of a table."""
    assert refusal(factory, f"SUBMIT(answer={value})", str, then="text")


@every_interpreter
@pytest.mark.parametrize("kind", [Any, str | None, list[str] | None, Literal["a"] | None])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_call_that_was_not_awaited_is_no_value(factory: Any, kind: Any) -> None:
    """The model is told what it forgot, not to make a text of it."""
    told = refusal(factory, "SUBMIT(answer=llm_query.acall('Who?'))", kind)
    assert "write `await` before the call" in told
    assert "str(" not in told


@pytest.mark.parametrize("value", ["lambda: 1", "find", "ValueError('no')"])
def test_a_function_and_an_error_have_no_fields(value: str) -> None:
    """In a REPL that shares objects they were read by their attributes, as `{}`."""
    assert "expected" in refusal(LocalPythonInterpreter, f"SUBMIT(answer={value})", dict[str, Any] | None)


@every_interpreter
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1.5", "1.5"),
        ("__import__('numpy').int64(2)", "2"),
        ("__import__('decimal').Decimal('1.50')", "1.50"),
        ("__import__('datetime').date(2025, 3, 14)", "2025-03-14"),
        ("__import__('pathlib').PurePosixPath('a/b')", "a/b"),
        ("__import__('enum').Enum('Level', 'LOW').LOW", "1"),
    ],
)
def test_what_has_a_usual_text_is_submitted_as_that(factory: Any, value: str, text: str) -> None:
    """Numbers, dates, paths, and enums by their values."""
    lm = ScriptedLM([block(f"SUBMIT(answer={value})")])
    with dspy.context(lm=lm):
        assert RLM("x -> answer", interpreter_factory=factory)(x="1").answer == text


@pytest.mark.parametrize(
    ("value", "instead"), [("llm_query", "call it"), ("map(str, [1])", "list(...) of it"), ("object()", "vars(")]
)
def test_code_is_told_what_to_pass_instead(value: str, instead: str) -> None:
    """`str(...)` of a function or an iterator is no answer."""
    assert instead in refusal(dspy.LocalInterpreter, f"SUBMIT(answer={value})", Any)


class Span(BaseModel):
    """A model whose fields have to fit each other."""

    begin: int
    end: int

    @model_validator(mode="after")
    def _in_order(self) -> Span:
        if self.end < self.begin:
            raise ValueError("end is before begin")
        return self


@pytest.mark.parametrize("kind", [Span, Span | None, dict[str, Span]])
def test_what_a_validator_of_a_whole_model_says_is_told(kind: Any) -> None:
    """Without it, a model that wrote each field well could not know what to correct."""
    wrong: Any = {"begin": 2, "end": 1}
    with pytest.raises(ValueError, match="end is before begin"):
        read_value({"a": wrong} if kind == dict[str, Span] else wrong, kind)
