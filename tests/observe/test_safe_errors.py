"""What goes wrong on the host reaches the code of a run as type and message, never with a key in it."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import traceback
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, InvalidInputs, Limits
from rlm_dspy.compute import Compute
from rlm_dspy.grounding import Grounding
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.redaction import safe_error, safe_message, without_credentials
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "planted-key-of-an-lm"
INTERPRETERS = pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])


def seen(code: str, factory: Any, answers: Any, **options: Any) -> str:
    """Return all that a run was told and tells: its steps, and what was sent to a model."""
    lm = ScriptedLM(answers if callable(answers) else lambda _: answers, act=[block(code)])
    lm.kwargs["api_key"] = KEY
    with dspy.context(lm=lm, interpreter_factory=factory):
        prediction = RLM("q -> a", max_iters=1, **options)(q="?")
    assert prediction.stop == "submitted", prediction.trajectory[-1]["output"]
    return json.dumps([prediction.trajectory, prediction.a, lm.script.calls], default=str)


CAUGHT = """
def caught(function):
    try:
        return function()
    except Exception as error:
        return repr(error)
"""


@INTERPRETERS
@pytest.mark.parametrize(
    "call",
    [
        "llm_query('x')",
        "llm_query_batched(['x', 'y'])",
        "dspy.Predict('text -> x')(text='a')",
        "dspy.ChainOfThought('text -> x').map(['a'])",
        "dspy.ReAct('text -> x', tools=[])(text='a')",
        "claims(text='t')",
    ],
)
def test_an_error_of_a_model_tells_no_key(call: str, factory: Any) -> None:
    """A server quotes the key that it refuses, or the headers of the request."""
    error = dspy.LMAuthError(f"Incorrect API key provided: {KEY}; headers: Authorization: Bearer abcdef0123456789")
    told = seen(f"{CAUGHT}\nSUBMIT(a=repr(caught(lambda: {call})))", factory, error, subs={"claims": "text -> x"})
    assert KEY not in told
    assert "abcdef0123456789" not in told
    assert "Incorrect API key provided: ***" in told
    assert "LMAuthError" in told


def test_a_key_of_the_run_is_hidden_from_code_that_asks_another_lm() -> None:
    """The LM of the turns is not that of the sub-calls."""

    def refuse(messages: list[dict[str, str]]) -> str:
        raise dspy.LMServerError(f"proxy of {KEY} is down")

    code = f"{CAUGHT}\nSUBMIT(a=repr(caught(lambda: llm_query('x'))))"
    told = seen(code, LocalPythonInterpreter, "", sub_lm=ScriptedLM(refuse))
    assert KEY not in told
    assert "proxy of *** is down" in told


def fails(text: str) -> str:
    """Look a text up."""
    raise ConnectionError(f"401 for https://user:pass-word@db/{text}?api_key={KEY} ghp_0123456789abcdefghij")


async def fails_later(text: str) -> str:
    """Look a text up."""
    await asyncio.sleep(0)
    return fails(text)


def leaves(text: str) -> str:
    """Look a text up."""
    raise SystemExit(3)


@INTERPRETERS
@pytest.mark.parametrize("tool", [fails, fails_later])
def test_an_error_of_a_tool_tells_no_key(tool: Callable[..., Any], factory: Any) -> None:
    told = seen(f"{CAUGHT}\nSUBMIT(a=caught(lambda: {tool.__name__}('x')))", factory, "", tools=[tool])
    for secret in (KEY, "pass-word", "ghp_0123456789abcdefghij"):
        assert secret not in told
    assert "ConnectionError: 401 for https://***@db/x?api_key=*** ***" in told


@pytest.mark.parametrize("tool", [fails, leaves])
def test_a_tool_of_react_fails_without_traceback_and_key(tool: Callable[..., Any]) -> None:
    """DSPy would show the model five frames of the host; a tool that exits would end the caller's program."""
    replies = iter(
        (
            fields(next_thought="t", next_tool_name=tool.__name__, next_tool_args='{"text": "t"}'),
            fields(next_thought="t", next_tool_name="finish", next_tool_args="{}"),
            fields(reasoning="r", x="done"),
        )
    )
    code = f"SUBMIT(a=dspy.ReAct('text -> x', tools=[{tool.__name__}])(text='t').x)"
    told = seen(code, LocalPythonInterpreter, lambda _: next(replies), tools=[tool])
    assert f"Execution error in {tool.__name__}: " in told
    assert "Traceback" not in told
    assert KEY not in told


def test_an_error_without_a_secret_stays_the_error_that_it_is() -> None:
    error = ValueError("no such page: 7")
    assert safe_error(error) is error


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer ***"),
        ("authorization: basic dXNlcjpwYXNz", "authorization: basic ***"),
        ("key sk-proj-0123456789abcdefgh is wrong", "key *** is wrong"),
        ("postgres://me:secret@db:5432/x", "postgres://***@db:5432/x"),
        (
            "the bearer of news, basic needs, sk-x, http://host/a@b",
            "the bearer of news, basic needs, sk-x, http://host/a@b",
        ),
    ],
)
def test_what_looks_like_a_key_is_hidden(text: str, left: str) -> None:
    assert without_credentials(text) == left
    assert safe_message(ValueError(text)) == left


class Client:
    """Holds a key."""

    def __repr__(self) -> str:
        """Show what it should not."""
        return f"Client({KEY})"


@INTERPRETERS
def test_a_default_that_is_an_object_or_a_key_is_shown_to_no_model(
    factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_API_KEY", "planted-key-of-a-tool")
    client = Client()

    def search(text: str, k: int = 5, key: str = "planted-key-of-a-tool", client: Any = client) -> str:
        return text

    class Look(dspy.Module):
        def forward(self, text: str, client: Any = client, key: str = "planted-key-of-a-tool") -> str:
            return text

    code = f"{CAUGHT}\nSUBMIT(a=caught(lambda: search(1, 2, 3, 4, 5, 6)) + caught(lambda: look(nothing=1)))"
    told = seen(code, factory, "", tools=[search], subs={"look": Look()})
    assert "k: int = 5" in told
    assert "key: str = '***'" in told
    assert "client: Any = ..." in told or "client: 'Any' = ..." in told
    assert KEY not in told
    assert "planted-key-of-a-tool" not in told


def test_a_notebook_shows_of_an_error_of_ours_the_callers_frames_alone() -> None:
    """IPython calls `_render_traceback_` in the place of its own; a caller still has the whole traceback."""
    with pytest.raises(InvalidInputs) as caught:
        RLM("text -> words")(txt="to be")
    shown = "\n".join(caught.value._render_traceback_())
    assert [line.strip() for line in shown.splitlines() if "File " in line] == [
        line.strip() for line in traceback.format_tb(caught.value.__traceback__, 1)[0].splitlines()[:1]
    ]
    assert re.match(r"Traceback \(\d+ inner frames left out; all: ", shown)
    assert shown.splitlines()[-1].startswith("rlm_dspy.errors.InvalidInputs: ")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RLM("text"),
        lambda: RLM("text -> words", max_iters=0),
        lambda: RLM("text -> words", tool=[]),  # type: ignore[arg-type]
        lambda: Limits(max_cost=-1),
        lambda: Limits(max_costs=1),  # type: ignore[call-arg]
        lambda: Compute(votes=0),
        lambda: Grounding(warn_below=2),
        lambda: PythonInterpreter(checkpoint="never"),  # type: ignore[arg-type]
    ],
)
def test_a_notebook_shows_of_a_wrong_argument_the_callers_frames_alone(make: Callable[[], object]) -> None:
    """The error has its whole traceback, and crosses to another process."""
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    shown = vars(caught.value)["_render_traceback_"]()
    frames = traceback.format_tb(caught.value.__traceback__, 2)
    assert [entry.splitlines()[0] for entry in shown[1:-1]] == [frame.splitlines()[0] for frame in frames]
    assert shown[-1] == "".join(traceback.format_exception_only(caught.value)).rstrip()
    assert len(traceback.extract_tb(caught.value.__traceback__)) > 2
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_password_in_the_address_of_a_server_is_redacted_wherever_it_is_quoted() -> None:
    """DSPy's client tells the host that does not respond as it stands in the address, without `http://`."""
    lm = dspy.LM("openai/m", api_base="http://me:word@a:1/v1")
    told = safe_message(dspy.LMError("failed to connect to me:word@a:1"), lm)
    assert told == "failed to connect to ***@a:1"
