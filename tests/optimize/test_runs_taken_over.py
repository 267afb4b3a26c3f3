"""`TrajectoryFewShot(log_dir=...)`: which runs of an earlier compile it takes over."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import TrajectoryFewShot, with_feedback
from rlm_dspy.testing import ScriptedLM
from tests.optimize.compiling import ASK, compiled, example
from tests.optimize.matrix_programs import exact
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def code_runs_in_this_process() -> Iterator[None]:
    """Run all code of these tests in this process."""
    with dspy.context(interpreter_factory=LocalPythonInterpreter):
        yield


def test_a_killed_compile_goes_on_where_it_was(tmp_path: Path) -> None:
    """What was finished is read from disk; what failed is run again."""
    train = [example(question=f"q{n}") for n in range(3)]
    ok = block("SUBMIT(answer='yes')")
    with pytest.raises(KeyboardInterrupt):
        compiled([ok, ok, KeyboardInterrupt()], train, log_dir=tmp_path)
    resumed, lm = compiled([ok], train, log_dir=tmp_path)
    assert len(lm.script.calls) == 1
    assert compiled([], train, log_dir=tmp_path)[1].script.calls == [], "what was resumed is kept too"
    assert resumed.dump_state() == compiled([ok] * 3, train)[0].dump_state()
    assert len(compiled([ok] * 3, train, log_dir=tmp_path, output_chars=100)[1].script.calls) == 3


def other(example: Any, prediction: Any, trace: Any = None) -> bool:
    """A metric of other source than the usual one."""
    return bool(prediction.answer)


def look() -> str:
    """Return a page."""
    return "page"


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (RLM(ASK, tools=[look]), {}),
        (RLM("context, question -> answer: Literal['yes', 'no']"), {}),
        (RLM(ASK, max_iters=3), {}),
        (None, {"metric": other}),
    ],
)
def test_runs_of_another_program_or_metric_are_not_taken_over(
    program: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """Its signature, tools and limits tell it, and the metric's source."""
    ok, train = block("SUBMIT(answer='yes')"), [example()]
    assert len(compiled([ok], train, log_dir=tmp_path)[1].script.calls) == 1
    assert compiled([], train, log_dir=tmp_path)[1].script.calls == []
    assert len(compiled([ok], train, program, log_dir=tmp_path, **options)[1].script.calls) == 1


LEAST: Any = 1


def reads_a_global(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Score by a function that reads a global."""
    return calls_a_reader()


def calls_a_reader() -> bool:
    """Return whether the global is small."""
    return any(most > LEAST for most in (100,))


def at_least(number: Any) -> Any:
    """Return a metric that holds a number."""
    return lambda example, prediction, trace=None: bool(number) and bool(prediction.answer)


def with_default(number: Any) -> Any:
    """Return a metric with a number as default."""

    def metric(example: Any, prediction: Any, trace: Any = None, least: Any = number) -> bool:
        return bool(prediction.answer)

    return metric


def takes_least(least: Any, example: Any, prediction: Any, trace: Any = None) -> bool:
    """Score with an argument that a `partial` binds."""
    return bool(prediction.answer)


class AtLeast:
    """A metric that is an object."""

    def __init__(self, least: Any) -> None:
        self.least = least

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> bool:
        """Score."""
        return bool(prediction.answer)

    score = __call__


METRICS: dict[str, Callable[[Any], Any]] = {
    "partial": lambda value: partial(takes_least, value),
    "function of a partial": lambda value: partial([takes_least, lambda *_: True][value - 1], 1),
    "closure": at_least,
    "closure over a function": lambda value: with_feedback(at_least(value)),
    "default": with_default,
    "object": AtLeast,
    "method": lambda value: AtLeast(value).score,
    "list": lambda value: AtLeast([{"least": {value, "x"}}]),
    "global": lambda value: reads_a_global,
}


@pytest.mark.parametrize("kind", METRICS)
def test_runs_of_a_metric_with_other_values_are_not_taken_over(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound arguments, closures, defaults, attributes and globals tell a metric, and no address does."""
    ok, calls = block("SUBMIT(answer='yes')"), []
    for value in (1, 1, 2):
        monkeypatch.setitem(globals(), "LEAST", value)
        _, lm = compiled([ok], [example()], metric=METRICS[kind](value), log_dir=tmp_path)
        calls.append(len(lm.script.calls))
    assert calls == [1, 0, 1]


def test_runs_of_a_metric_that_cannot_be_identified_are_not_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says so once, with what to do."""
    metric = AtLeast([threading.Lock(), threading.Lock()])
    for _ in range(2):
        caplog.clear()
        _, lm = compiled([block("SUBMIT(answer='yes')")], [example()], metric=metric, log_dir=tmp_path)
        assert len(lm.script.calls) == 1
        (said,) = [record.getMessage() for record in caplog.records if "reused" in record.getMessage()]
        assert "an object of the type _thread.lock" in said
    compiled([block("SUBMIT(answer='yes')")], [example()], metric=metric)
    assert caplog.text.count("reused") == 1


@pytest.mark.parametrize("how", ["settings", "program", "teacher"])
def test_runs_of_another_teacher_are_not_taken_over(how: str, tmp_path: Path) -> None:
    """Wherever its LM was set."""
    for model in ("a/model", "b/model"):
        lm, program, teacher = ScriptedLM([block("SUBMIT(answer='yes')")]), RLM(ASK), RLM(ASK)
        lm.model = model
        options: dict[str, Any] = {"teacher_settings": {"lm": lm}} if how == "settings" else {}
        if how != "settings":
            (program if how == "program" else teacher).set_lm(lm)
        optimizer = TrajectoryFewShot(exact, log_dir=tmp_path, **options)
        with dspy.context(lm=ScriptedLM([])):
            optimizer.compile(program, trainset=[example()], teacher=teacher if how == "teacher" else None)
        assert len(lm.script.calls) == 1
