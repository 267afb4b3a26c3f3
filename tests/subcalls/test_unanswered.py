"""A sub-call that ends without an answer is a failure: no door hands its `None` to the code."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields
from tests.subcalls.test_subs import everywhere

if TYPE_CHECKING:
    from tests.tracing.stores import Store

ROOT = "the root's task"


class Wrapped(dspy.Module):
    """Hands on what an RLM gave."""

    def __init__(self) -> None:
        super().__init__()
        self.rlm = RLM("part -> n: int, why", max_iters=1)

    def forward(self, part: str) -> dspy.Prediction:
        return self.rlm(part=part)


class Patient(Wrapped):
    """Goes on without the answer of an RLM."""

    def forward(self, part: str) -> dspy.Prediction:
        found = super().forward(part)
        return dspy.Prediction(n=-1) if found.stop == "unanswered" else found


DOORS = {
    "rlm_query": ("rlm_query('Do it.', 'part')", "rlm_query_batched([('Do it.', 'part'), ('Do it.', 'other')])"),
    "inline": (
        "dspy.RLM('part -> n: int, why')(part='p')",
        "dspy.RLM('part -> n: int, why').map([{'part': 'p'}, {'part': 'q'}])",
    ),
    "declared": ("deep('p')", "deep.map(['p', 'q'])"),
    "wrapped": ("wrapped('p')", "wrapped.map(['p', 'q'])"),
}


def rlm_of(**options: Any) -> RLM:
    """Return a root whose declared subs are an RLM, and modules that call one."""
    subs = {"deep": RLM("part -> n: int, why", max_iters=2), "wrapped": Wrapped(), "patient": Patient()}
    signature = dspy.Signature("q -> answer: str", ROOT)
    return RLM(signature, subs=subs, **options)


def model(code: str, child: str = "print('half')", extraction: Any = "<think>no answer") -> ScriptedLM:
    """Return a model that writes `code` in the root and `child` in a child, and answers extractions."""
    return ScriptedLM(lambda _: extraction, act=[block(code)], child=lambda _: block(child))


def play(rlm: RLM, lm: ScriptedLM, factory: Any = LocalPythonInterpreter, *, awaiting: bool = False) -> Any:
    """Call the root, or await it."""
    with dspy.context(lm=lm, interpreter_factory=factory):
        return asyncio.run(rlm.acall(q="?")) if awaiting else rlm(q="?")


@everywhere
@pytest.mark.parametrize("door", DOORS)
def test_a_child_that_ends_unanswered_raises_in_the_cell(factory: Any, door: str) -> None:
    """The error says why the child ended and what to do instead; the trajectory keeps what it did."""
    single, _ = DOORS[door]
    caught = "except SubCallError as e:\n    answer = f'raised: {e}'"
    code = f"try:\n    answer = repr({single})\n{caught}\nSUBMIT(answer=answer)"
    pred = play(rlm_of(limits=Limits(max_llm_calls=30, max_repetitions=None)), model(code), factory)
    assert pred.answer.startswith("raised: Unanswered: The child ended without an answer.")
    assert "no turns are left" in pred.answer
    assert "smaller part" in pred.answer
    (call,) = pred.trajectory[0]["calls"]
    assert (call["stop"], call["output"], call["answer"]) == ("unanswered", "", "")
    assert "ended without an answer" in call["error"]
    assert {step["output"].strip() for step in call["steps"]} == {"half"}
    assert pred.usage["failed"] == 1


@pytest.mark.parametrize("awaiting", [False, True])
@pytest.mark.parametrize("door", DOORS)
def test_in_a_batch_it_is_the_failed_item(door: str, awaiting: bool) -> None:
    """Each item is false and says why; the others would have been kept."""
    _, batch = DOORS[door]
    code = f"found = {batch}\nSUBMIT(answer=str([(bool(f), f.kind) for f in found]))"
    pred = play(rlm_of(limits=Limits(max_llm_calls=40)), model(code), awaiting=awaiting)
    assert pred.answer == "[(False, 'Unanswered'), (False, 'Unanswered')]"
    assert [call["stop"] for call in pred.trajectory[0]["calls"]] == ["unanswered", "unanswered"]
    assert pred.usage["failed"] == 2


def test_one_unanswered_child_leaves_the_answers_beside_it() -> None:
    """In order."""
    code = "found = deep.map(['p', 'q'])\nSUBMIT(answer=str([f.n if f else f.error for f in found]))"
    lm = model(code, "SUBMIT(n=7, why='w') if part == 'q' else print('half')", "no fields")
    assert play(rlm_of(), lm).answer.endswith(", 7]")


def test_a_part_of_an_answer_is_no_answer() -> None:
    """An extraction that finds one of two outputs: the child has failed, and nothing of it is handed on."""
    code = "SUBMIT(answer=deep.map(['p'])[0].error)"
    pred = play(rlm_of(), model(code, extraction=fields(n="3")))
    assert "ended without an answer" in pred.answer


def test_an_extracted_answer_is_an_answer() -> None:
    """Also one that is None where the type allows it."""
    rlm = RLM(dspy.Signature("q -> answer: str", ROOT), subs={"deep": RLM("part -> n: int | None", max_iters=1)})
    lm = model("SUBMIT(answer=repr(deep('p')))", extraction=fields(n="null"))
    pred = play(rlm, lm)
    assert (pred.answer, pred.trajectory[0]["calls"][0]["stop"]) == ("None", "extracted")


def test_a_module_may_go_on_without_the_answer_of_a_run_inside_it() -> None:
    """What it makes of that is its answer."""
    assert play(rlm_of(), model("SUBMIT(answer=str(patient('p')))")).answer == "-1"


class Careless(dspy.Module):
    """Has a signature, and gives less than it says."""

    def __init__(self, signature: str, **given: Any) -> None:
        super().__init__()
        self.signature = dspy.Signature(signature)
        self.given = given

    def forward(self, **inputs: Any) -> Any:
        return dspy.Prediction(**self.given) if self.given else None


@everywhere
@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Careless("part -> n: int", other=1), "returned no value for n"),
        (Careless("part -> n: int, why", n=1), "returned no value for why"),
        (Careless("part -> n: int", n=None), "returned no value for n"),
        (Careless("part -> n: list[str]", n=None), "returned no value for n"),
        (Careless("part -> n: int"), "returned no value for n"),
        (Careless("part -> n: int | None", n=None), "None"),
        (Careless("part -> n: int | None", other=1), "None"),
        (Careless("part -> n: Any", n=None), "None"),
        (Careless("part -> n: int", n=0), "0"),
        (Careless("part -> n: bool", n=False), "False"),
        (Careless("part -> n", n="''"), "''"),
        (Careless("part -> n: list[str]", n=[]), "[]"),
    ],
)
def test_an_output_without_a_value_is_a_failure_unless_its_type_allows_none(
    factory: Any, module: dspy.Module, told: str
) -> None:
    """What is false, but a value, is an answer."""
    rlm = RLM(dspy.Signature("q -> answer: str", ROOT), subs={"sub": module})
    code = "found = sub.map(['p'])[0]\nSUBMIT(answer=found.error if isinstance(found, FailedCall) else str(found))"
    assert told in play(rlm, model(code), factory).answer


def test_an_output_with_the_default_none_may_be_none() -> None:
    """And the model is told so."""

    class Score(dspy.Signature):
        """Score it."""

        part: str = dspy.InputField()
        n: int = dspy.OutputField(default=None)

    lm = model("SUBMIT(answer=repr(score('p')))", extraction="[[ ## completed ## ]]")
    pred = play(RLM(dspy.Signature("q -> answer: str", ROOT), subs=[Score]), lm)
    assert pred.answer == "None"
    (told,) = (line for line in lm.script.calls[0][1]["content"].splitlines() if "score(part" in line)
    assert "None" in told


def test_a_module_and_a_tool_that_return_nothing_are_fine() -> None:
    """They promised no output."""

    class Notes(dspy.Module):
        def forward(self, part: str) -> None:
            del part

    def note(part: str) -> None:
        """Keep a note."""

    rlm = RLM(dspy.Signature("q -> answer: str", ROOT), subs=[Notes()], tools=[note])
    assert play(rlm, model("SUBMIT(answer=repr([notes('p'), note('p')]))")).answer == "[None, None]"


def test_in_traces_it_has_failed(store: Store) -> None:
    """The child's own span, and the call of the code that asked for it."""
    play(rlm_of(), model("SUBMIT(answer=deep.map(['p'])[0].error)"))
    spans = store.trace().data.spans
    failed = [each.name for each in spans if each.status.status_code == "ERROR"]
    assert sorted(name for name in failed if name != "extract") == ["RLM", "deep"]


def test_the_root_itself_returns_what_it_has() -> None:
    """Its caller reads `stop` and why in `final_reasoning`; nothing is raised."""
    pred = play(rlm_of(max_iters=1), model("print('half')"))
    assert (pred.answer, pred.stop) == (None, "unanswered")
    assert "no turns are left" in pred.final_reasoning
