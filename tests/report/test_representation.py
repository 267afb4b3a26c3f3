"""Predictions and modules show themselves; a prediction writes the report of its run."""

from __future__ import annotations

import copy
import io
import pickle
from html import unescape
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from IPython.lib.pretty import pretty
from rich.console import Console

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.coverage.tracker import watched
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.report.record import Recorder
from rlm_dspy.report.representation import RunPrediction
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DONE = block("print('<b>')\nSUBMIT(answer='<i>done</i>')")
PICTURE = block("import os, pathlib\nos.makedirs('output')\npathlib.Path('output/a.png').write_bytes(b'png')")


def rlm(signature: str = "context, question -> answer", **options: Any) -> RLM:
    return RLM(
        signature, policy=None, refuse_blind_submit=False, interpreter_factory=LocalPythonInterpreter, **options
    )


def played(*replies: str, module: RLM | None = None, **inputs: Any) -> RunPrediction:
    with dspy.context(lm=ScriptedLM(list(replies))):
        prediction = (module or rlm())(**{"context": "c", "question": "What?", **inputs})
    assert isinstance(prediction, RunPrediction)
    return prediction


def test_a_notebook_shows_answer_end_turns_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that models and code wrote is escaped."""
    monkeypatch.chdir(tmp_path)
    shown = played(PICTURE, DONE)._repr_html_()
    assert shown is not None
    for part in ("answer: str", "&lt;i&gt;done", "submitted after 2 turns", "scripted/lm", "os.makedirs"):
        assert part in shown
    assert '<img src="data:image/png;base64,cG5n" alt="a.png">' in shown
    assert shown.count("<details>") == 2
    assert "<i>done" not in shown


def test_a_terminal_shows_the_same_in_lines() -> None:
    """With rich, and in IPython; what could control a terminal is not printed."""
    prediction = played(block("1/0"), block("SUBMIT(answer='a\x1bb')"))
    file = io.StringIO()
    Console(file=file, width=100).print(prediction)
    first, second, *turns = pretty(prediction).splitlines()
    assert first.split() == ["answer", "a\N{REPLACEMENT CHARACTER}b"]
    assert second.startswith("submitted after 2 turns (")
    assert turns == ["1. error: 1/0", "2. SUBMIT: SUBMIT(answer='a\N{REPLACEMENT CHARACTER}b')"]
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [first, second, *turns]


def test_the_report_is_a_file_and_a_frame_of_a_notebook(tmp_path: Path) -> None:
    prediction = played(DONE, question="Which <one>?")
    page = prediction.report(tmp_path / "run.html")
    written = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert page.path == tmp_path / "run.html"
    assert page.html == written
    assert "<h1>Which &lt;one&gt;?</h1>" in written
    frame = page._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert unescape(frame.partition('"')[2].partition('"')[0]) == written
    assert "sandbox " in frame  # no script runs in it
    assert prediction.report().path is None
    with pytest.raises(OSError, match="missing"):
        prediction.report(tmp_path / "missing" / "run.html")


def test_the_report_is_that_of_the_record() -> None:
    """With coverage if it is watched; long inputs are told, not held: no digest is made of them."""
    recorder = Recorder()
    with dspy.context(lm=ScriptedLM([DONE]), callbacks=[recorder]), watched():
        prediction = rlm()(context="The work is done.", question="What?")
    assert recorder.record is not None
    assert prediction._record is not None
    without = recorder.record.model_copy(update={"digests": {}, "started_at": prediction._record.started_at})
    assert prediction._record == without
    assert "Where the answer appears" not in played(DONE).report().html


@pytest.mark.parametrize("long", ["x" * 100_000, ["x" * 1_000] * 1_000, Text("x" * 100_000)])
def test_a_prediction_holds_no_long_input(long: Any) -> None:
    assert len(pickle.dumps(played(DONE, context=long))) < 30_000


COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    lambda prediction: pickle.loads(pickle.dumps(prediction)),
    lambda prediction: prediction.copy(),
    lambda prediction: prediction.with_inputs(),
    RunPrediction,
]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_equal_and_knows_its_run(copied: Callable[[Any], Any]) -> None:
    prediction = played(DONE)
    twin = copied(prediction)
    assert twin == prediction
    assert twin._repr_html_() == prediction._repr_html_()
    assert twin.report().html == prediction.report().html


def test_what_is_shown_are_the_outputs_that_there_are_now() -> None:
    prediction = played(DONE)
    prediction.answer = "other"
    assert "other" in str(prediction._repr_html_())
    assert "done" not in str(prediction.without("answer")._repr_html_()).partition("<p>")[0]


def test_outputs_named_like_ours_take_precedence() -> None:
    module = rlm("context -> report: str, usage: str, stop: str")
    code = "SUBMIT(report='r', usage='u', stop='s')"
    with dspy.context(lm=ScriptedLM([block(code)])):
        prediction: dspy.Prediction = module(context="x")
    assert (prediction.report, prediction.usage, prediction.stop) == ("r", "u", "s")
    assert "submitted after 1 turn" in str(prediction._repr_html_())
    prediction.report = "other"
    assert prediction["report"] == "other"


def test_a_prediction_of_no_run_is_shown_as_dspy_does() -> None:
    made = RunPrediction.from_completions([{"answer": "a"}])
    assert made._repr_html_() is None
    assert pretty(made) == repr(made) == repr(dspy.Prediction(answer="a"))
    with pytest.raises(ValueError, match="not returned by a run"):
        made.report()


def test_dspy_handles_it_like_any_prediction() -> None:
    """Evaluation, `majority`, `BestOfN` and a saved result."""
    lm = ScriptedLM(lambda _: block("SUBMIT(answer='a')"))
    example = dspy.Example(context="c", question="q", answer="a").with_inputs("context", "question")
    right = lambda example, prediction, trace=None: example.answer == prediction.answer  # noqa: E731
    with dspy.context(lm=lm, track_usage=True):
        result = dspy.Evaluate(devset=[example] * 2, metric=right, num_threads=2, display_table=2)(rlm())
        best = dspy.BestOfN(rlm(), N=2, reward_fn=lambda _, prediction: prediction.answer == "a", threshold=1.0)
        found = best(context="c", question="q")
    assert result.score == 100
    assert found.report().html
    assert found.get_lm_usage()
    assert dspy.majority([found, found.copy()], field="answer").answer == "a"
    assert dspy.Prediction(found) == found
    assert isinstance(found.toDict()["trajectory"], list)


def test_an_error_carries_what_there_is_as_a_prediction() -> None:
    """Its outputs are None, and it says how the run ended."""
    lm = ScriptedLM([block("print(1)"), dspy.LMServerError("down")])
    with pytest.raises(dspy.LMError) as caught, dspy.context(lm=lm):
        rlm()(context="x", question="?")
    partial = vars(caught.value)["prediction"]
    assert (partial.answer, partial.stop, len(partial.trajectory)) == (None, "failed", 1)
    assert "failed after 1 turn</b>: down" in partial._repr_html_()
    assert "No answer." in partial.report().html


def test_an_interrupt_carries_it_too_and_its_own_traceback() -> None:
    """IPython calls `_render_traceback_`; the notebook's test sees what it shows. It can be pickled."""

    def reply(messages: list[dict[str, str]]) -> str:
        if len(messages) > 3:
            raise KeyboardInterrupt
        return block("print(1)")

    with pytest.raises(KeyboardInterrupt) as caught, dspy.context(lm=ScriptedLM(reply)):
        rlm()(context="x", question="?")
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.prediction.stop, len(error.trajectory)) == ("interrupted", 1)
    assert callable(error._render_traceback_)


def test_an_rlm_shows_what_it_is_made_of() -> None:
    """What is by default is left out."""

    def fetch(page: int) -> str:
        """Fetch a <page>."""
        return str(page)

    module = rlm(
        "context -> words: int",
        tools=[fetch],
        subs={"gist": "text -> gist"},
        limits=Limits(max_iters=7, max_cost=2),
    )
    module.act.demos = [dspy.Example()]
    with dspy.context(lm=ScriptedLM([])):
        lines = [line.split(maxsplit=1) for line in pretty(module).splitlines()]
        html = module._repr_html_()
    facts = {line[0]: line[1] for line in lines if len(line) > 1}
    assert facts["signature"] == "context: str -> words: int"
    assert facts["limits"] == "max_iters=7, max_llm_calls=50, max_cost=2"
    assert (facts["model"], facts["subs"], facts["demos"]) == ("scripted/lm", "gist", "1 demo")
    assert facts["tools"] == "fetch: Fetch a <page>."
    assert "<td>fetch: Fetch a &lt;page&gt;.</td>" in html
    assert "model of sub-calls" not in html
    with dspy.context(lm=None):
        assert "none: dspy.configure(lm=...)" in module._repr_html_()


def test_an_answer_read_from_the_trajectory_is_shown_as_such() -> None:
    prediction = played(block("print(1)"), fields(answer="a"), module=rlm(max_iters=1))
    assert "read from the trajectory" in str(prediction._repr_html_())
