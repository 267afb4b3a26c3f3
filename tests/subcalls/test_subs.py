"""Declared subs: functions of the REPL that are predictors of the program."""

from __future__ import annotations

import copy
import enum
import pickle
from typing import TYPE_CHECKING, Any, Literal

import dspy
import pytest
from pydantic import BaseModel

from rlm_dspy import RLM, Limits, SubCallCache
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields, scripted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.playing import Play

INTERPRETERS = [PythonInterpreter, LocalPythonInterpreter, dspy.LocalInterpreter]
everywhere = pytest.mark.parametrize("factory", INTERPRETERS, ids=["confined", "local", "dspys"])


class Tone(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


class Claim(BaseModel):
    text: str
    year: int | None = None


class Claims(dspy.Signature):
    """List the claims the passage makes."""

    passage: str = dspy.InputField()
    claims: list[str] = dspy.OutputField()


class Ask(dspy.Signature):
    """Ask."""

    q: str = dspy.InputField()
    a: list[str] = dspy.OutputField()


class Judge(dspy.Signature):
    """Judge a claim."""

    claim: Claim = dspy.InputField()
    topic: str = dspy.InputField()
    tone: Tone = dspy.OutputField()
    score: float = dspy.OutputField()


class Find(dspy.Signature):
    """Find the claim."""

    passage: str = dspy.InputField()
    claim: Claim = dspy.OutputField()


def acts(code: str, answer: Callable[[str], Any]) -> ScriptedLM:
    """Return a scripted model that writes `code` when it acts, and answers sub-calls by `answer(last message)`."""
    return ScriptedLM(lambda said: answer(said[-1]["content"]), act=lambda _: block(code))


def run(
    rlm: RLM, code: str, answer: Callable[[str], Any], factory: Any = LocalPythonInterpreter, **inputs: Any
) -> Any:
    """Return the prediction of a run of `code`, and the scripted LM."""
    lm = acts(code, answer)
    with dspy.context(lm=lm, interpreter_factory=factory):
        return rlm(**(inputs or {"q": "?"})), lm


def listed(said: str) -> str:
    """Answer `Claims`: the words of the passage."""
    passage = said.split("[[ ## passage ## ]]\n")[1].split("\n", maxsplit=1)[0]
    return fields(claims=repr(passage.split()).replace("'", '"'))


@everywhere
def test_a_sub_is_a_typed_function_of_the_repl(factory: Any) -> None:
    """One output gives the value; by position or by name."""
    code = "SUBMIT(a=claims('x y'), b=claims(passage='z'))"
    pred, _ = run(RLM("q -> a: list[str], b: list[str]", subs=[Claims]), code, listed, factory)
    assert (pred.a, pred.b) == (["x", "y"], ["z"])


@everywhere
def test_map_answers_in_order_and_a_failed_item_keeps_the_paid_ones(factory: Any) -> None:
    """A failure is false, and says what failed and for which item."""

    def answer(said: str) -> Any:
        return dspy.LMServerError("down") if "bad" in said else listed(said)

    code = (
        "found = claims.map(['a b', 'bad', 'c'])\n"
        "SUBMIT(good=[f for f in found if f], error=found[1].error, item=found[1].item['passage'])"
    )
    pred, _ = run(RLM("q -> good: list[list[str]], error, item", subs=[Claims]), code, answer, factory)
    assert pred.good == [["a", "b"], ["c"]]
    assert "down" in pred.error
    assert pred.item == "bad"


@everywhere
def test_a_bare_item_fills_the_first_input_as_one_argument_does(factory: Any) -> None:
    """The others may have defaults."""

    class Hinted(dspy.Signature):
        passage: str = dspy.InputField()
        hint: str = dspy.InputField(default="")
        claims: list[str] = dspy.OutputField()

    code = "SUBMIT(one=hinted('a b'), many=hinted.map(['a b', 'c']))"
    pred, _ = run(RLM("q -> one: list[str], many: list[list[str]]", subs=[Hinted]), code, listed, factory)
    assert (pred.one, pred.many) == (["a", "b"], [["a", "b"], ["c"]])


@everywhere
def test_several_outputs_are_a_record_and_models_cross_both_ways(factory: Any) -> None:
    """Attributes and keys; a record can be handed on to a sub that wants the model, and submitted as it."""

    def answer(said: str) -> str:
        if "Find the claim" in said or "[[ ## passage ## ]]" in said:
            return fields(claim='{"text": "tides rise", "year": 2024}')
        return fields(tone="glad", score="0.5")

    code = (
        "found = find('p')\n"
        "judged = judge(found, topic='sea')\n"
        "again = judge.map([found, {'text': 'y'}], topic='sea')\n"
        "print(found, judged)\n"
        "SUBMIT(claim=found, tone=judged.tone, score=judged['score'], year=found.year, n=len([a for a in again if a]))"
    )
    outputs = {"claim": (Claim, dspy.OutputField()), "tone": (Tone, dspy.OutputField())}
    outputs |= {
        "score": (float, dspy.OutputField()),
        "year": (int, dspy.OutputField()),
        "n": (int, dspy.OutputField()),
    }
    signature = dspy.Signature({"q": (str, dspy.InputField()), **outputs}, "Work.")
    pred, _ = run(RLM(signature, subs=[Find, Judge]), code, answer, factory)
    assert pred.claim == Claim(text="tides rise", year=2024)
    assert (pred.tone, pred.score, pred.year, pred.n) == (Tone.GLAD, 0.5, 2024, 2)
    if factory is not dspy.LocalInterpreter:  # it drops what is printed before SUBMIT
        printed = pred.trajectory[0]["output"]
        assert printed.startswith("Claim(text='tides rise', year=2024) Prediction(tone=<Tone.GLAD: 'glad'>")


def test_an_input_is_read_into_the_type_of_its_field() -> None:
    """The module gets a model, not a dict."""
    got: list[Any] = []

    class Look(dspy.Module):
        def forward(self, claim: Claim, often: int = 2) -> str:
            got.append((claim, often))
            return "seen"

    code = "SUBMIT(answer=look({'text': 'x', 'year': '7'}))"
    pred, _ = run(RLM("q -> answer", subs=[Look()]), code, lambda said: None)
    assert got == [(Claim(text="x", year=7), 2)] or got == [(Claim(text="x", year=7),)]
    assert pred.answer == "seen"


def test_an_item_that_does_not_fit_fails_before_it_is_paid_for() -> None:
    """With the field and what it needs; the others are answered."""
    code = "found = judge.map([{'claim': 3}, {'claim': {'text': 'a'}}], topic='t')\nSUBMIT(error=found[0].error, ok=bool(found[1]))"
    pred, lm = run(RLM("q -> error, ok: bool", subs=[Judge]), code, lambda said: fields(tone="sad", score="1"))
    assert "InvalidInputs" in pred.error
    assert "claim: expected Claim" in pred.error
    assert pred.ok
    assert len(lm.script.calls) == 2


def test_what_cannot_be_read_is_asked_for_again_with_the_reason() -> None:
    """At most twice, each time counted."""
    replies = iter(["no form at all", "still none", fields(tone="glad", score="1"), *["none"] * 9])
    code = (
        "judged = judge({'text': 'a'}, 't')\n"
        "lost = judge.map([{'text': 'b'}], topic='t')[0]\n"
        "SUBMIT(score=judged.score, kind=lost.kind)"
    )
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        pred, lm = run(RLM("q -> score: float, kind", subs=[Judge]), code, lambda said: next(replies))
    assert (pred.score, pred.kind) == (1.0, "AdapterParseError")
    assert "could not be parsed" not in lm.script.calls[1][-1]["content"]
    assert "could not be parsed" in lm.script.calls[2][-1]["content"]
    calls = pred.trajectory[0]["calls"]
    assert [call["attempts"] for call in calls] == [3, 3]
    assert len(lm.script.calls) == 1 + 3 + 3


def test_equal_items_of_one_batch_are_asked_once() -> None:
    """And what was answered once in a run is not asked again in it."""
    code = "a = claims.map(['x', 'y', 'x', 'x'])\nb = claims('y')\nSUBMIT(a=a, b=b)"
    pred, lm = run(RLM("q -> a: list[list[str]], b: list[str]", subs=[Claims]), code, listed)
    assert (pred.a, pred.b) == ([["x"], ["y"], ["x"], ["x"]], ["y"])
    assert len(lm.script.calls) == 1 + 2
    assert pred.usage["reused"] == 3
    assert [call["cached"] for call in pred.trajectory[0]["calls"]] == [False, False, True, True, True]


def test_without_a_cache_everything_is_asked() -> None:
    """`cache=False` is for sampling."""
    code = "SUBMIT(a=[str(x) for x in claims.map(['x', 'x'])])"
    pred, lm = run(RLM("q -> a: list[str]", subs=[Claims], cache=False), code, listed)
    assert len(lm.script.calls) == 1 + 2
    assert pred.usage["reused"] == 0


def test_a_failure_is_not_kept() -> None:
    """The next call asks."""
    replies: list[Any] = [dspy.LMServerError("down"), fields(claims='["x"]')]
    code = "a = claims.map(['x'])\nb = claims('x')\nSUBMIT(a=bool(a[0]), b=b)"
    pred, _ = run(RLM("q -> a: bool, b: list[str]", subs=[Claims]), code, lambda said: replies.pop(0))
    assert (pred.a, pred.b) == (False, ["x"])


def test_a_cache_of_ones_own_serves_runs_copies_and_processes(tmp_path: Path) -> None:
    """By a file; another instruction, another temperature, other inputs are other questions."""
    path = tmp_path / "answers.jsonl"
    code = "SUBMIT(a=claims('x'))"
    rlm = RLM(Ask, subs=[Claims], cache=SubCallCache(path))
    for module, asked in ((rlm, 2), (rlm, 1), (rlm.deepcopy(), 1), (pickle.loads(pickle.dumps(rlm)), 1)):
        pred, lm = run(module, code, listed)
        assert pred.a == ["x"]
        assert len(lm.script.calls) == asked
    other = rlm.deepcopy()
    other.subs.claims.signature = other.subs.claims.signature.with_instructions("Otherwise.")
    _, lm = run(other, code, listed)
    assert len(lm.script.calls) == 2
    _, lm = run(rlm, "SUBMIT(a=claims('y'))", listed)
    assert len(lm.script.calls) == 2
    assert len(SubCallCache(path)) == 3


def test_subs_are_named_predictors_that_save_and_load(tmp_path: Path) -> None:
    """`subs.<name>`; a module keeps its own names below that."""
    rlm = RLM("q -> a", subs={"claims": Claims, "think": dspy.ChainOfThought(Judge), "short": "text -> gist"})
    names = [name for name, _ in rlm.named_predictors()]
    assert names == ["act", "query", "subs.claims", "subs.think.predict", "subs.short"]
    rlm.subs.claims.demos = [dspy.Example(passage="p", claims=["c"])]
    rlm.save(tmp_path / "rlm.json")
    again = RLM("q -> a", subs={"claims": Claims, "think": dspy.ChainOfThought(Judge), "short": "text -> gist"})
    again.load(tmp_path / "rlm.json")
    assert again.subs.claims.demos[0]["claims"] == ["c"]
    assert copy.deepcopy(again).subs.claims.demos[0]["claims"] == ["c"]
    lm = scripted(["x"])
    again.set_lm(lm)
    assert again.subs.think.predict.lm is lm


def test_a_chain_of_thought_gives_the_value_that_was_asked_for() -> None:
    """Its reasoning is no output of the user's."""
    rlm = RLM("q -> a: list[str]", subs={"claims": dspy.ChainOfThought(Claims)})
    pred, _ = run(rlm, "SUBMIT(a=claims('x'))", lambda said: fields(reasoning="so", claims='["x"]'))
    assert pred.a == ["x"]


@pytest.mark.parametrize(
    ("subs", "told"),
    [
        (["text -> gist"], r"has no name\. Pass a dict"),
        ([dspy.ChainOfThought("a -> b")], r"has no name\. Pass a dict"),
        ([Claims, Claims], "another sub"),
        ({"q": Claims}, "an input field"),
        ({"search": Claims}, "a tool"),
        ({"SUBMIT": Claims}, "a name of the REPL"),
        ({"_x": Claims}, "a name of the REPL"),
        ({"query": Claims}, "a role of the run"),
        ({"batch": Claims}, "an attribute of dspy.Module"),
        ({"no name": Claims}, "identifier"),
        ({3: Claims}, "identifier"),
        (Claims, "a list of signatures"),
        ([3], "must be a dspy.Signature class"),
        ([{}], "must be a dspy.Signature class"),
        ({"a": 3}, "must be a dspy.Signature"),
        ({"a": "text, config -> b"}, "reads config as a setting"),
        ({"a": dspy.ChainOfThought("text, lm, demos -> b")}, "reads demos, lm as a setting"),
        ({"a": "no arrow"}, "->|arrow"),
    ],
)
def test_a_sub_that_cannot_be_is_refused(subs: Any, told: str) -> None:
    """The message names the fix."""

    def search(text: str) -> str:
        return text

    with pytest.raises((TypeError, ValueError), match=told):
        RLM("q -> a", tools=[search], subs=subs)


def test_a_list_names_subs_in_snake_case() -> None:
    """As functions are named."""

    class HTMLPageFinder(dspy.Module):
        def forward(self, url: str) -> str:
            return url

    class ArticleClaims(Claims):
        """More."""

    assert RLM("q -> a", subs=[Claims, HTMLPageFinder(), ArticleClaims]).subs.names() == [
        "claims",
        "html_page_finder",
        "article_claims",
    ]


def test_the_environment_shows_a_typed_stub() -> None:
    """With the docstring, and that it maps."""

    class Label(dspy.Signature):
        """Label it."""

        text: str = dspy.InputField()
        kind: Literal["news", "opinion"] = dspy.OutputField()
        sure: bool = dspy.OutputField()

    _, lm = run(RLM("q -> a", subs=[Claims, Label]), "SUBMIT(a='')", listed)
    shown = lm.script.calls[0][-1]["content"]
    assert "- claims(passage: str) -> list[str]  # List the claims the passage makes." in shown
    assert "- label(text: str) -> record(kind: Literal['news', 'opinion'], sure: bool)  # Label it." in shown
    assert "claims.map(items" in shown
    _, lm = run(RLM("q -> a", subs=[Claims], max_llm_calls=0), "SUBMIT(a='')", listed)
    assert "claims" not in lm.script.calls[0][-1]["content"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("claims()", "passage: missing"),
        ("claims('a', 'b')", "claims(passage: str) -> list[str]"),
        ("claims(text='a')", "Unknown argument text"),
        ("claims('a', passage='b')", "passage twice"),
        ("claims.map('abc')", "list of items"),
        ("judge.map(['a'])", "topic: missing"),
        ("claims(claims)", "cannot leave the REPL"),
        ("claims.map(['a'], passages='b')", "Unknown argument"),
    ],
)
def test_a_wrong_call_says_how_to_call(play: Play, call: str, told: str) -> None:
    """Nothing is paid."""
    lm = ScriptedLM([block(call), block("SUBMIT(answer='a')")])
    played = play(RLM("q -> answer", subs=[Claims, Judge]), lm, q="?")
    assert told in played.outputs[0]
    assert len(lm.script.calls) == 2


def test_a_batch_far_beyond_the_budget_is_refused_before_it_is_paid_for(play: Play) -> None:
    """With the numbers; one a bit over is answered as far as it goes."""
    lm = acts(
        "try:\n    claims.map([str(i) for i in range(9)])\nexcept Exception as e:\n    SUBMIT(a=str(e))", listed
    )
    played = play(RLM("q -> a", subs=[Claims], max_llm_calls=4), lm, q="?")
    assert (
        "This needs 9 calls of claims, but only 4 of 4 model calls are left; none was made" in played.prediction.a
    )
    assert len(lm.script.calls) == 1


def test_a_turn_keeps_what_each_sub_call_was_given_and_answered() -> None:
    """In the order they were asked for, with batch numbers, short forms, and what each used."""
    code = "claims.map(['a', 'b' * 3000])\njudge({'text': 'c'}, 't')\nSUBMIT(a='')"

    def answer(said: str) -> str:
        return listed(said) if "passage" in said else fields(tone="glad", score="1")

    pred, _ = run(RLM("q -> a", subs=[Claims, Judge]), code, answer)
    first, second, third = pred.trajectory[0]["calls"]
    assert [call["batch"] for call in (first, second, third)] == [1, 1, 2]
    assert (first["name"], first["kind"], first["inputs"], first["output"]) == (
        "claims",
        "sub",
        {"passage": "a"},
        "['a']",
    )
    assert len(second["inputs"]["passage"]) < 600
    assert third["spent"]["calls"] == 1
    assert third["spent"]["output_tokens"] > 0
    total = sum(call["spent"]["calls"] for call in (first, second, third))
    assert total == pred.usage["by_role"]["claims"]["calls"] + pred.usage["by_role"]["judge"]["calls"]


def test_a_sub_has_the_lm_of_sub_calls_unless_it_has_its_own() -> None:
    """`sub_lm` for all; `set_lm` on the whole program does not take it away."""
    small, own = (ScriptedLM(lambda messages: listed(messages[-1]["content"])) for _ in range(2))
    mine = dspy.Predict(Claims)
    mine.lm = own
    rlm = RLM("q -> a", subs={"claims": Claims, "mine": mine}, sub_lm=small)
    run(rlm, "claims('x')\nmine('y')\nSUBMIT(a='')", listed)
    assert (len(small.script.calls), len(own.script.calls)) == (1, 1)
    lm = acts("claims('z')\nSUBMIT(a='')", listed)
    rlm = RLM("q -> a", subs=[Claims], sub_lm=small)
    rlm.set_lm(lm)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        rlm(q="?")
    assert len(small.script.calls) == 2


def test_thousands_of_items_are_fine_and_the_constant_is_sent_once() -> None:
    """With a concurrency far below."""
    code = "topic = 't' * 5000\nfound = judge.map([{'text': str(i)} for i in range(2000)], topic=topic)\nSUBMIT(n=sum(map(bool, found)))"
    lm = acts(code, lambda said: fields(tone="glad", score="1"))
    rlm = RLM("q -> n: int", subs=[Judge], limits=Limits(max_llm_calls=3000, max_concurrency=8))
    with dspy.context(lm=lm, interpreter_factory=PythonInterpreter):
        pred = rlm(q="?")
    assert pred.n == 2000
    assert lm.script.most_at_once <= 8


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
def test_a_pydantic_model_written_in_the_repl_is_the_type_of_a_sub_call(factory: Any) -> None:
    """In the confined interpreter too, as it is made by default."""
    code = (
        "from pydantic import BaseModel, Field\n"
        "class Fact(BaseModel):\n    text: str\n    year: int = Field(ge=1900)\n"
        "class Find(dspy.Signature):\n"
        "    passage: str = dspy.InputField()\n    fact: Fact = dspy.OutputField()\n"
        "fact = dspy.Predict(Find)(passage='p').fact\n"
        "SUBMIT(text=fact.text, year=Fact(text='again', year=fact.year).year)"
    )
    signature = "q -> text: str, year: int"
    pred, _ = run(RLM(signature), code, lambda _: fields(fact='{"text": "tides rise", "year": 2024}'), factory)
    assert (pred.text, pred.year) == ("tides rise", 2024)


@everywhere
def test_an_output_may_be_named_base(factory: Any) -> None:
    """DSPy's records take one of this name for a record to copy."""
    code = "found = dspy.Predict('text -> base, more')(text='t')\nSUBMIT(base=found.base + found.more)"
    pred, _ = run(RLM("q -> base"), code, lambda _: fields(base="a", more="b"), factory)
    assert pred.base == "ab"
