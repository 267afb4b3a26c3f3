"""Answers nested deep, and what servers report of their replies: neither ends a run that had its answer."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.budget.lm_info import tokens_of
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.json_values import MAX_DEPTH, jsonable, nested_too_deep
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.observe.load import load_record
from rlm_dspy.optimize.upstream import shown
from rlm_dspy.redaction import in_strings
from rlm_dspy.report.record import Record, recorded
from rlm_dspy.report.write_report import report_html
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.playing import Play
    from tests.tracing.stores import Store

FACTORIES = [PythonInterpreter, LocalPythonInterpreter, dspy.LocalInterpreter]
LEVELS = 300


def nested(levels: int, leaf: Any = "sk-planted-secret-0001") -> list[Any]:
    """Return a text inside so many lists and dicts."""
    value: Any = leaf
    for level in range(levels):
        value = [value] if level % 2 else {"in": value}
    return value if isinstance(value, list) else [value]


def submit(levels: int) -> str:
    """Return a reply that submits a text inside so many lists."""
    return block(f"x = 'deep down'\nfor _ in range({levels}): x = [x]\nSUBMIT(answer=x)")


def depth(value: Any) -> int:
    """Return in how many lists something lies."""
    levels = 0
    while isinstance(value, list):
        value, levels = value[0], levels + 1
    return levels


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("levels", [LEVELS, MAX_DEPTH - 20])
def test_a_deep_answer_is_recorded_saved_loaded_and_shown_whole(factory: Any, levels: int, tmp_path: Path) -> None:
    """From SUBMIT to the report, nothing gives up below the limit."""
    rlm = RLM("q -> answer: list", interpreter_factory=factory)
    with dspy.context(lm=ScriptedLM([submit(levels)])):
        record, error = recorded(rlm, {"q": "?"})
    assert error is None
    assert depth(record.outputs["answer"]) == levels
    record.save(tmp_path / "run.json")
    for loaded in (Record.load(tmp_path / "run.json"), load_record(tmp_path / "run.json")):
        assert loaded.outputs == record.outputs
    assert "deep down" in report_html(record)


def test_a_deep_answer_is_written_to_the_event_log_without_the_secrets_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes through every level."""
    monkeypatch.setenv("PLANTED_KEY", "deep down there")
    code = block(f"x = 'deep down there'\nfor _ in range({LEVELS}): x = [x]\nSUBMIT(answer=x)")
    with RunLog(tmp_path / "log"), dspy.context(lm=ScriptedLM([code])):
        RLM("q -> answer: list", interpreter_factory=LocalPythonInterpreter)(q="?")
    (read,) = read_log(tmp_path / "log")
    assert depth(read.outputs["answer"]) == LEVELS
    assert "deep down there" not in json.dumps(read.outputs)


def test_a_deep_answer_is_traced(store: Store) -> None:
    """MLflow has the trace, and the whole record beside it."""
    with dspy.context(lm=ScriptedLM([submit(LEVELS)]), interpreter_factory=LocalPythonInterpreter):
        RLM("q -> answer: list")(q="?")
    (file,) = [path for path in store.files(store.trace()) if b'"trajectory"' in path.read_bytes()]
    assert depth(json.loads(file.read_bytes())["outputs"]["answer"]) == LEVELS


def test_an_answer_beyond_the_limit_is_refused_in_its_turn(play: Play) -> None:
    """Also one that lies inside itself; the model can submit a flatter one."""
    rlm = RLM("q -> answer: list")
    inside_itself = block("x = []; x += [x, x]\nSUBMIT(answer=x)")
    played = play(rlm, [submit(MAX_DEPTH + 1), inside_itself, submit(2)], q="?")
    assert played.kinds == ["refused", "refused", "submitted"]
    assert all(f"{MAX_DEPTH} levels" in output for output in played.outputs[:2])


def test_a_deep_answer_of_a_child_reaches_its_parent(play: Play) -> None:
    """It crosses the REPL twice."""
    replies = [
        block("x = dspy.RLM('q -> answer: list')(q='?').answer\nSUBMIT(answer=x)"),
        submit(LEVELS),
    ]
    played = play(RLM("q -> answer: list"), replies, q="?")
    assert depth(played.prediction.answer) == LEVELS


def test_a_deep_answer_can_be_read_from_the_trajectory(play: Play) -> None:
    """Extraction, too, takes what the model gives."""
    deep = json.dumps(nested(120))
    played = play(RLM("q -> answer: list", max_iters=1), [block("1"), fields(answer=deep)], q="?")
    assert played.prediction.stop == "extracted"
    assert played.prediction.answer == nested(120)


def test_values_become_json_however_deep_they_are() -> None:
    """What lies deeper than the limit, or in itself, is left out, and nothing raises."""
    assert jsonable(nested(LEVELS)) == nested(LEVELS)
    assert "..." in json.dumps(jsonable(nested(MAX_DEPTH + 50)))
    loop: list[Any] = [float("nan"), "\ud800"]
    loop.append(loop)
    assert jsonable(loop) == ["NaN", "?", "..."]
    assert not nested_too_deep(nested(MAX_DEPTH - 1))
    assert nested_too_deep(loop)


def test_the_strings_of_deep_data_are_changed_and_the_data_is_not() -> None:
    """Names too."""
    data = {"a": nested(MAX_DEPTH), "b": ["x", 1, None]}
    changed = in_strings(data, str.upper)
    assert changed["B"] == ["X", 1, None]
    assert "SK-PLANTED" in json.dumps(changed)
    assert data == {"a": nested(MAX_DEPTH), "b": ["x", 1, None]}


def test_a_deep_answer_is_shown_to_a_model_that_reflects() -> None:
    """What lies far below is cut."""
    assert len(json.dumps(shown(nested(MAX_DEPTH)))) < 2_000


NONSENSE = [
    *({}, None, {"prompt_tokens": None, "completion_tokens": None}, {"prompt_tokens": 7}),
    *({"prompt_tokens": "twelve", "completion_tokens": -3}, {"prompt_tokens": float("nan")}),
    *({"completion_tokens": float("inf")}, {"prompt_tokens": 10**400}, {"prompt_tokens": True}),
    {"prompt_tokens": [1], "completion_tokens": {"a": 1}},
    {"prompt_tokens": 1, "prompt_tokens_details": "none"},
    {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": "all"}},
    {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": -1}},
]


class Reporting(dspy.BaseLM):
    """An LM whose server reports what it likes."""

    def __init__(self, replies: Iterator[str], usages: list[Any]) -> None:
        super().__init__("my/model", cache=False)
        self.replies, self.usages = replies, usages

    def forward(self, prompt: Any = None, messages: Any = None, **_: Any) -> SimpleNamespace:
        """Return the next reply in OpenAI's form."""
        message = SimpleNamespace(content=next(self.replies), role="assistant")
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage=self.usages.pop(0), model=self.model)


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
@pytest.mark.parametrize("limits", [Limits(), Limits(max_input_tokens=10**7)], ids=["free", "limited"])
@pytest.mark.parametrize("usage", NONSENSE, ids=lambda usage: str(usage)[:50])
def test_whatever_usage_a_server_reports_the_run_goes_on(usage: Any, limits: Limits) -> None:
    """What is no number of tokens counts as not reported; calls count as ever."""
    good = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    replies = iter([block("x = llm_query('?')"), "yes", block("SUBMIT(answer=x)")])
    lm = Reporting(replies, [good, usage, good])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter, track_usage=True):
        prediction = RLM("q -> answer", limits=limits)(q="?")
    assert prediction.answer == "yes"
    assert prediction.usage["calls"] == 3
    known = tokens_of(usage or {})
    assert prediction.usage["input_tokens"] == 10 + known["input_tokens"]
    assert known["input_tokens"] in (0, 1, 7)
    assert known["cached_input_tokens"] == known["output_tokens"] == 0
