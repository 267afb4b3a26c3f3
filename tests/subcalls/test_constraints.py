"""What a field says of its values holds: for SUBMIT, for extraction, into sub-calls and out of them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

import dspy
import pytest
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints, TypeAdapter

from rlm_dspy import RLM
from rlm_dspy.compute import Compute
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.repl.coercion import read_answer, read_value, type_of
from rlm_dspy.repl.type_names import name_of
from rlm_dspy.subcalls.interface import interface_of
from rlm_dspy.testing import ScriptedLM
from tests.playing import Play, block, fields, told

INTERPRETERS = pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])


def even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


def breaks(value: str) -> str:
    return {"a": "a"}[value]


def made(kind: Any, **options: Any) -> Any:
    """Return a signature with one output of a type."""
    return dspy.Signature({"q": (str, dspy.InputField()), "x": (kind, dspy.OutputField(**options))}, "Answer.")


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


CASES = [
    (made(int, ge=1, le=5), 3, 7, "less than or equal to 5"),
    (made(int, ge=1, le=5), "3", "0", "greater than or equal to 1"),
    (made(float, gt=0, lt=1), 0.5, 1, "less than 1"),
    (made(int, multiple_of=3), 9, 10, "multiple of 3"),
    (made(str, max_length=3), "abc", "abcd", "at most 3 characters"),
    (made(str, min_length=1), "a", "", "at least 1 character"),
    (made(str, pattern=r"^\d{4}$"), "2024", "24", r"^\d{4}$"),
    (made(list[str], max_length=2), ["a"], ["a", "b", "c"], "at most 2 items"),
    (made(list[str], min_length=1), '["a"]', "[]", "at least 1 item"),
    (made(dict[str, int], min_length=1), {"a": 1}, {}, "at least 1 item"),
    (made(dt.date, ge=dt.date(2020, 1, 1)), "2021-01-01", "2019-01-01", "2020-01-01"),
    (made(Annotated[int, Field(ge=1), AfterValidator(even)]), 2, 3, "must be even"),
    (made(Annotated[int, AfterValidator(even)], le=4), 4, 6, "less than or equal to 4"),
    (made(Annotated[str, StringConstraints(pattern="^a+$")]), "aa", "b", "^a+$"),
    (made(Annotated[str, AfterValidator(breaks)]), "a", "b", "KeyError"),
    (made(int | None, ge=1), None, 0, "greater than or equal to 1"),
    (made(list[Annotated[int, Field(ge=1)]]), [1], [1, 0], "1: Input should be greater than or equal to 1"),
    (made(Literal["a", "b"], max_length=1), "a", "c", "expected Literal"),
]


@pytest.mark.parametrize(("signature", "good", "bad", "said"), CASES)
def test_a_value_that_breaks_a_constraint_is_refused_with_field_and_constraint(
    signature: Any, good: Any, bad: Any, said: str
) -> None:
    values, problems = read_answer(signature, {"x": good})
    assert problems == []
    TypeAdapter(type_of(signature.output_fields["x"])).validate_python(values["x"])
    values, (problem,) = read_answer(signature, {"x": bad})
    assert problem.startswith("x: ")
    assert said in problem
    assert "x" not in values


def test_a_validator_before_the_type_sees_the_value_as_it_was_given() -> None:
    """And one behind it runs once."""
    before, after = BeforeValidator(lambda value: int(str(value).strip("$"))), AfterValidator(lambda n: n + 1)
    price = Annotated[int, before, after]
    assert read_answer(made(price), {"x": "$5"}) == ({"x": 6}, [])
    assert read_value("[1, 2]", Annotated[list[int], Field(min_length=2)]) == [1, 2]
    assert read_value(5, Annotated[str, Field(max_length=1)]) == "5"


def test_a_discriminator_chooses_the_class() -> None:
    signature = made(Cat | Dog, discriminator="kind")
    values, problems = read_answer(signature, {"x": {"kind": "cat", "lives": 9}})
    assert (values["x"], problems) == (Cat(kind="cat", lives=9), [])
    _, (problem,) = read_answer(signature, {"x": {"kind": "cow"}})
    assert "cow" in problem


class Rate(dspy.Signature):
    """Rate the text."""

    text: str = dspy.InputField()
    score: int = dspy.OutputField(ge=1, le=5)
    code: str = dspy.OutputField(pattern="^[A-Z]{2}$")
    why: Annotated[str, Field(max_length=10)] = dspy.OutputField(desc="in short")


def test_submit_is_refused_until_all_constraints_hold(play: Play) -> None:
    """Each is stated in the first message, and named in the refusal."""
    replies = [
        block("SUBMIT(score=9, code='eu', why='x' * 11)"),
        block("SUBMIT(score=5, code='EU', why='x' * 10)"),
    ]
    played = play(RLM(Rate), replies, text="t")
    assert played.kinds == ["refused", "submitted"]
    for name, said in (
        ("score", "less than or equal to 5"),
        ("code", "[A-Z]{2}"),
        ("why", "at most 10 characters"),
    ):
        assert any(line.startswith(f"- {name}: ") and said in line for line in played.outputs[0].splitlines())
    assert (played.prediction.score, played.prediction.code) == (5, "EU")
    environment = told(played.calls[0])
    for said in (
        "greater than or equal to: 1",
        "less than or equal to: 5",
        "pattern: ^[A-Z]{2}$",
        "maximum length: 10",
    ):
        assert said in environment
    assert "Annotated" not in environment


def test_an_extracted_answer_that_breaks_a_constraint_is_no_answer(play: Play) -> None:
    """It is not passed on, and the run says why it has none."""
    rlm = RLM(Rate, max_iters=1)
    wrong = play(rlm, [block("1"), fields(score="9", code="EU", why="w")], text="t").prediction
    assert (wrong.stop, wrong.score) == ("unanswered", None)
    assert "less than or equal to 5" in wrong.final_reasoning
    right = play(rlm, [block("1"), fields(score="4", code="EU", why="w")], text="t").prediction
    assert (right.stop, right.score) == ("extracted", 4)


# Sub-calls


def run(code: str, answers: list[str], factory: Any, signature: str = "q -> a", **options: Any) -> Any:
    """Run a cell; sub-calls get the answers in order."""
    with dspy.context(lm=ScriptedLM(answers, act=[block(code)]), interpreter_factory=factory):
        prediction = RLM(signature, max_iters=1, **options)(q="?")
    assert prediction.stop == "submitted", prediction.trajectory[-1]["output"]
    return prediction


def answer(**values: str) -> str:
    return fields(**{"score": "3", "code": "EU", "why": "w", **values})


@INTERPRETERS
def test_a_sub_whose_answer_breaks_a_constraint_is_asked_again(factory: Any) -> None:
    """With the reason; after three attempts it has failed."""
    code = "found = rate(text='t')\nSUBMIT(a=f'{found.score} {found.code}')"
    found = run(code, [answer(score="9"), answer(code="eu"), answer()], factory, subs=[Rate])
    assert (found.a, found.trajectory[0]["calls"][0]["attempts"]) == ("3 EU", 3)
    code = "found = rate.map(['t'])\nSUBMIT(a=found[0].error)"
    found = run(code, [answer(score="9")] * 3, factory, subs=[Rate])
    assert "score: Input should be less than or equal to 5; got int 9" in found.a


@INTERPRETERS
def test_the_second_attempt_is_told_what_was_wrong(factory: Any) -> None:
    lm = ScriptedLM([answer(score="10"), answer(score="5")], act=[block("SUBMIT(a=str(rate(text='t').score))")])
    with dspy.context(lm=lm, interpreter_factory=factory):
        assert RLM("q -> a", subs=[Rate], max_iters=1)(q="?").a == "5"
    assert "score: Input should be less than or equal to 5" in lm.script.calls[-1][-1]["content"]


@pytest.mark.parametrize("how", ["by the same LM", "by the usual LM"])
def test_an_answer_that_is_asked_for_again_is_not_in_the_trace(how: str) -> None:
    """Optimizers make demos of what is there, and would teach the answer that was refused."""
    replies = [answer(score="9"), answer(code="eu"), answer()]
    cheap = ScriptedLM(subs=[replies.pop(0)]) if how == "by the usual LM" else None
    rlm = RLM("q -> a", subs=[Rate], max_iters=1, compute=Compute(cheap_lm=cheap))
    lm = ScriptedLM(act=[block("SUBMIT(a=str(rate(text='t').score))")], subs=replies)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter, trace=[]):
        rlm(q="?")
        found = [(predictor, outputs.get("score")) for predictor, _, outputs in dspy.settings.trace]
    assert found == [(rlm.act, None), (rlm.subs.rate, 3)]


@INTERPRETERS
@pytest.mark.parametrize("module", ["Predict", "ChainOfThought"])
def test_constraints_written_in_the_repl_hold_for_its_modules(module: str, factory: Any) -> None:
    """In a class, inline, and for the items of a batch."""
    code = f"""
from typing import Annotated
from pydantic import Field
class Rate(dspy.Signature):
    text: str = dspy.InputField(max_length=3)
    score: int = dspy.OutputField(ge=1, le=5)
first = dspy.{module}(Rate)(text="t").score
second = dspy.{module}("text -> score: Annotated[int, Field(ge=1, le=5)]").map(["t"])[0].error
third = dspy.{module}(Rate).map(["long text"])[0].error
SUBMIT(a=str([first, second, third]))
"""
    answers = [fields(reasoning="r", score=score) for score in ("7", "5", "7", "7", "7")]
    found = run(code, answers, factory)
    assert found.a.startswith("[5, ")
    assert "less than or equal to 5" in found.a
    assert "text: String should have at most 3 characters" in found.a


@INTERPRETERS
def test_what_goes_into_a_sub_fits_its_constraints_before_it_is_paid_for(factory: Any) -> None:
    class Look(dspy.Signature):
        page: int = dspy.InputField(ge=1)
        x: str = dspy.OutputField()

    code = "SUBMIT(a=' / '.join(each.error for each in look.map([0, '-1'])))"
    found = run(code, [], factory, subs={"look": dspy.Predict(Look)})
    assert found.a.count("page: Input should be greater than or equal to 1") == 2
    assert "Annotated" not in found.a


@INTERPRETERS
def test_what_goes_into_a_child_and_comes_out_of_it_fits(factory: Any) -> None:
    code = (
        "child = dspy.RLM('page: Annotated[int, Field(ge=1)] -> n: Annotated[int, Field(le=5)]')\n"
        "bad = child.map([0])[0].error\nSUBMIT(a=f'{child(page=1).n} {bad}')"
    )
    lm = ScriptedLM(act=[block(code)], child=[block("SUBMIT(n=9)"), block("SUBMIT(n=5)")])
    with dspy.context(lm=lm, interpreter_factory=factory):
        found = RLM("q -> a")(q="?").a
    assert found.startswith("5 ")
    assert "page: Input should be greater than or equal to 1" in found
    assert "less than or equal to 5" in lm.script.calls[-1][-1]["content"]


@INTERPRETERS
def test_the_arguments_of_a_tool_fit_what_its_function_says(factory: Any) -> None:
    """DSPy takes the types alone out of its annotations."""
    given: list[int] = []

    def page(number: Annotated[int, Field(ge=1, le=9)]) -> str:
        """Get a page."""
        given.append(number)
        return f"page {number}"

    code = "try:\n    page(0)\nexcept ValueError as error:\n    SUBMIT(a=page('3') + str(error))"
    found = run(code, [], factory, tools=[page])
    assert found.a.startswith("page 3page: number: Input should be greater than or equal to 1")
    assert given == [3]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Annotated[int, Field(ge=1)], "int"),
        (list[Annotated[int, Field(ge=1)]], "list[int]"),
        (dict[str, Annotated[int, Field(ge=1)] | None], "dict[str, Union[int, NoneType]]"),
        (tuple[Annotated[int, Field(ge=1)], ...], "tuple[int, Ellipsis]"),
        (list[int], "list[int]"),
    ],
)
def test_a_type_is_named_without_its_constraints(kind: Any, name: str) -> None:
    assert name_of(kind) == name


def test_an_interface_names_types_and_keeps_constraints() -> None:
    interface = interface_of("rate", dspy.Predict(Rate))
    assert interface.stub == "rate(text: str) -> record(score: int, code: str, why: str)"
    assert interface.outputs is not None
    with pytest.raises(ValueError, match="less than or equal to 5"):
        read_value(7, interface.outputs["score"])


def test_an_answer_is_not_reused_where_the_types_or_constraints_differ() -> None:
    """Neither for a class of the same name with other fields."""
    code = """
from typing import Annotated
from pydantic import BaseModel, Field
free = dspy.Predict("text -> n: int")(text="t").n
bound = dspy.Predict("text -> n: Annotated[int, Field(le=5)]")(text="t").n
class M(BaseModel):
    x: int
first = dspy.Predict("text -> m: M")(text="t").m.x
class M(BaseModel):
    y: int
second = dspy.Predict("text -> m: M")(text="t").m.y
SUBMIT(a=str([free, bound, first, second]))
"""
    answers = [fields(n="9"), fields(n="4"), fields(m='{"x": 1}'), fields(m='{"y": 2}')]
    assert run(code, answers, LocalPythonInterpreter).a == "[9, 4, 1, 2]"
