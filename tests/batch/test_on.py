"""`batch.on`: optimizers and evaluations run through an executor, and learn what they would learn here."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy
import pytest

from rlm_dspy import RLM, InvalidInputs, Limits, batch
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.optimize import TrajectoryFewShot, with_feedback
from rlm_dspy.optimize.upstream import GEPA
from rlm_dspy.testing import ScriptedLM
from tests.batch.counting import CONTEXT, CountingLM, examples, program
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def right(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None, *rest: Any) -> float:
    """Score a prediction of the examples' program."""
    return float(prediction.words == 20_000 + example.number)


@pytest.fixture
def lm(tmp_path: Path) -> CountingLM:
    """Return an LM that counts its requests across processes."""
    (tmp_path / "requests").mkdir()
    return CountingLM(tmp_path / "requests")


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Start two processes for all tests of this module."""
    with ProcessPoolExecutor(2) as executor:
        yield executor


def processes_of(lm: CountingLM) -> set[int]:
    """Return the ids of the processes that made requests."""
    return {int(path.name.rpartition("-")[2]) for path in lm.made_with[0].iterdir()}


def test_an_evaluation_runs_in_other_processes(lm: CountingLM, processes: ProcessPoolExecutor) -> None:
    """Scores and predictions are those of the program."""
    with dspy.context(lm=lm):
        evaluate = dspy.Evaluate(devset=examples(4), metric=right, num_threads=2)
        result = evaluate(batch.on(program(), executor=processes))
    assert result.score == 100.0
    assert {prediction.trajectory[0]["kind"] for _, prediction, _ in result.results} == {"submitted"}
    assert os.getpid() not in processes_of(lm)


def test_a_trace_that_comes_home_is_by_the_predictors_of_the_module(
    lm: CountingLM, processes: ProcessPoolExecutor
) -> None:
    """An optimizer finds its own predictors in it."""
    there, here = batch.on(program(), executor=processes), program()
    with dspy.context(lm=lm, trace=[]):
        there(context=CONTEXT, number=1)
        ((predictor, inputs, outputs),) = dspy.settings.trace
    with dspy.context(lm=lm, trace=[]):
        here(context=CONTEXT, number=1)
        ((_, same_inputs, same_outputs),) = dspy.settings.trace
    assert predictor is there.program.act
    assert str(inputs["environment"]) == str(same_inputs["environment"])
    assert outputs.code == same_outputs.code


def test_usage_comes_home(lm: CountingLM, processes: ProcessPoolExecutor) -> None:
    """To DSPy's tracker, and to the ledger of whoever measures the calls."""
    there, here, ledger = batch.on(program(), executor=processes), program(), Ledger(Limits())
    with dspy.context(lm=lm):
        with dspy.track_usage() as tracker, metered(ledger, "pilot"):
            there(context=CONTEXT, number=1)
        with dspy.track_usage() as same:
            here(context=CONTEXT, number=1)
    assert tracker.get_total_tokens() == same.get_total_tokens() != {}
    assert (ledger.totals().calls, ledger.totals().output_tokens) == (1, 5)


def test_few_shot_learns_from_runs_in_other_processes(lm: CountingLM, processes: ProcessPoolExecutor) -> None:
    """The demos are those that runs in this process give."""
    with dspy.context(lm=lm):
        optimizer = TrajectoryFewShot(right, max_demos=2, num_threads=2)
        there = optimizer.compile(batch.on(program(), executor=processes), trainset=examples(3))
        here = optimizer.compile(program(), trainset=examples(3))
    assert [demo.code for demo in there.program.act.demos] == [demo.code for demo in here.act.demos] != []


def test_gepa_reflects_on_runs_in_other_processes(lm: CountingLM, processes: ProcessPoolExecutor) -> None:
    """Each candidate is sent; its rollouts run there, and the reflection is told of their turns."""
    wrong = CountingLM(lm.made_with[0], reply="```python\nSUBMIT(words=1)\n```")
    told = ScriptedLM(lambda messages: "```\nCount the words, then add the number.\n```")
    with dspy.context(lm=wrong):
        optimizer = GEPA(
            with_feedback(right),
            max_metric_calls=8,
            reflection_minibatch_size=2,
            reflection_lm=told,
            num_threads=2,
        )
        optimizer.compile(batch.on(program(), executor=processes), trainset=examples(2), valset=examples(2))
    shown = "\n".join(message["content"] for call in told.script.calls for message in call)
    assert "SUBMIT(words=1)" in shown
    assert os.getpid() not in processes_of(lm)


async def test_a_module_on_an_executor_is_awaited_too(lm: CountingLM, processes: ProcessPoolExecutor) -> None:
    """The event loop goes on meanwhile."""
    with dspy.context(lm=lm):
        prediction = await batch.on(program(), executor=processes).acall(context=CONTEXT, number=2)
    assert prediction.words == 20_002


def test_an_error_comes_home_as_it_is(lm: CountingLM, processes: ProcessPoolExecutor) -> None:
    """With the type that callers catch, and the trajectory."""
    broken = CountingLM(lm.made_with[0], reply="```python\nprint(1)\n```", fails_from=2)
    there = batch.on(program(), executor=processes)
    with dspy.context(lm=broken):
        with pytest.raises(InvalidInputs, match="unknown"):
            there(contxt="")
        with pytest.raises(dspy.LMInvalidRequestError, match="no more") as caught:
            there(context=CONTEXT, number=1)
    assert [step["code"] for step in caught.value.trajectory] == ["print(1)"]


def test_a_call_whose_worker_is_killed_is_made_again(tmp_path: Path) -> None:
    """The caller sees the answer; an evaluation goes on."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "bullet").touch()
    lm = CountingLM(tmp_path / "requests", kill="number: int, 2")
    there = batch.on(program(), executor=lambda: ProcessPoolExecutor(1))
    with dspy.context(lm=lm):
        result = dspy.Evaluate(devset=examples(4), metric=right, num_threads=2)(there)
    there.engine.close()
    assert result.score == 100.0
    assert lm.requests == 5


def test_threads_need_no_pickle() -> None:
    """The default: the trace is the caller's own list."""
    lm = ScriptedLM(lambda messages: "```python\nSUBMIT(words=1)\n```")
    there = batch.on(RLM("text -> words: int"))
    with dspy.context(lm=lm, trace=[]):
        assert there(text="a").words == 1
        assert dspy.settings.trace[0][0] is there.program.act
    there.engine.close()
    with pytest.raises(RuntimeError, match=r"Make new ones: batch\.on"):
        there(text="a")


@pytest.mark.parametrize("executor", [None, lambda: ThreadPoolExecutor(2)], ids=["threads", "made by a function"])
def test_a_module_that_ran_is_saved_whole_and_gets_workers_of_its_own(executor: Any, tmp_path: Path) -> None:
    """A compiled program is kept this way."""
    made = batch.on(RLM("text -> words: int"), executor=executor)
    with dspy.context(lm=ScriptedLM(lambda _: block("SUBMIT(words=len(text.split()))"))):
        made(text="a b")
        made.save(str(tmp_path / "saved"), save_program=True)
        loaded = dspy.load(str(tmp_path / "saved"), allow_pickle=True)
        assert loaded(text="a b c").words == 3
    assert loaded.engine is not made.engine
    for module in (made, loaded):
        module.engine.close()


def test_a_module_on_an_executor_of_the_caller_says_what_to_save_instead(processes: ProcessPoolExecutor) -> None:
    """Nobody could make the same workers where it is loaded."""
    with pytest.raises(TypeError, match=r"Save the program itself, module\.program, or pass a function"):
        cloudpickle.dumps(batch.on(program(), executor=processes))


def test_program_and_executor_are_checked_at_once() -> None:
    """The message names the fix."""
    with pytest.raises(TypeError, match=r"program must be a dspy.Module, not <class"):
        batch.on(RLM)
    with pytest.raises(TypeError, match=r"lambda: ProcessPoolExecutor\(4\), not 'processes'"):
        batch.on(program(), executor="processes")  # type: ignore[arg-type]
