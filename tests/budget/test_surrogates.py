"""Halves of surrogate pairs, as binary data read as text holds them: no request of a run fails because of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.text import all_sendable
from tests.playing import block, fields

if TYPE_CHECKING:
    from pathlib import Path


class Doc(BaseModel):
    title: str
    tags: list[str] = []


class Gist(dspy.Signature):
    """Say what a document is about."""

    doc: Doc = dspy.InputField()
    note: str = dspy.OutputField()


def tool(x: str) -> str:
    """Return the text with another half behind it."""
    return x + "\udfff"


SUBS = {
    "note": "text -> note",
    "notes": "texts: list[str] -> note",
    "named": "by_name: dict[str, list[str]] -> note",
    "gist": Gist,
}
CALLS = {
    "llm_query": "llm_query(bad)",
    "a batch": "llm_query_batched([bad, 'b'])",
    "a sub": "note(text=bad)",
    "a sub with a list": "notes(texts=[bad])",
    "a sub with a dict": "named(by_name={bad: [bad]})",
    "a sub with a model": "gist(doc={'title': bad, 'tags': [bad]})",
    "many of a sub": "note.map([bad, 'b'])",
    "a module of the REPL": "dspy.Predict('text -> note')(text=bad)",
    "a module with a list": "dspy.ChainOfThought('texts: list[str] -> note')(texts=[bad])",
    "instructions": "dspy.Predict(dspy.Signature('text -> note', bad))(text='a')",
    "tools": "dspy.ReAct('text -> note', tools=[tool])(text=tool(bad))",
    "a child": "rlm_query(bad, context=bad)",
    "a child with a signature": "dspy.RLM('texts -> response')(texts=[bad])",
}


@pytest.mark.parametrize("interpreter", [LocalPythonInterpreter, PythonInterpreter])
@pytest.mark.parametrize("call", CALLS)
def test_a_sub_call_with_half_a_surrogate_pair_is_answered(interpreter: Any, call: str, tmp_path: Path) -> None:
    """Whatever it stands in; what is kept of the run can be stored."""
    code = f"bad = 'half ' + chr(0xD800)\nanswer = {CALLS[call]}\nSUBMIT(answer=[str(answer), bad])"
    lm = ScriptedLM(
        # Each module reads its fields of these.
        lambda _: fields(next_thought="t", next_tool_name="finish", next_tool_args="{}", reasoning="r", note="ok"),
        act=[block(code)],
        child=lambda _: block("SUBMIT(response='of a child ' + chr(0xD800))"),
    )
    rlm = RLM("context -> answer: list[str]", subs=SUBS, tools=[tool], limits=Limits(max_depth=1))
    with dspy.context(lm=lm, interpreter_factory=interpreter), RunLog(tmp_path / "log"):
        prediction = rlm(context="half \udc80")
    assert prediction.stop == "submitted", prediction.trajectory
    assert len(prediction.trajectory) == 1, prediction.trajectory[0]["output"]
    assert "ok" in prediction.answer[0] or "of a child" in prediction.answer[0]
    assert [sub["error"] for sub in prediction.trajectory[0]["calls"] if sub["error"]] == []
    assert len(json.dumps(lm.script.calls, ensure_ascii=False).encode()) > 0
    assert len(str(prediction.trajectory).encode()) > 0
    assert read_log(tmp_path / "log")[0].stop == "submitted"


TEXTS = st.text(st.one_of(st.characters(), st.sampled_from("\ud800\udc80\udfff")), max_size=8)
DATA = st.recursive(
    st.one_of(TEXTS, st.integers(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


@given(DATA)
def test_any_data_is_mended_for_utf_8_and_what_is_whole_stays_the_same_object(data: Any) -> None:
    fixed = all_sendable(data)
    json.dumps(fixed, ensure_ascii=False).encode()
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        assert fixed != data
    else:
        assert fixed is data
