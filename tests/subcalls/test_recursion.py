"""Modules written in the REPL, child RLMs, and async code over sub-calls, in three interpreters."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from dspy.utils.callback import ACTIVE_CALL_ID

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields
from tests.subcalls.test_subs import Claims, everywhere, listed, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.playing import Play

# Modules written in the REPL


@everywhere
def test_a_module_written_in_the_repl_runs_on_the_host(factory: Any) -> None:
    """Inline signatures, types, instructions; the answer is a record."""
    code = (
        "scored = dspy.Predict('text, topic -> score: int, why')(text='a', topic='b')\n"
        "thought = dspy.ChainOfThought(dspy.Signature('text -> score: int', 'Count.'))(text='a')\n"
        "many = dspy.Predict('text -> score: int').map(['x', 'y'])\n"
        "SUBMIT(a=scored.score, b=thought.score, why=thought.reasoning, many=[m.score for m in many])"
    )

    def answer(said: str) -> str:
        return fields(reasoning="so", score="7", why="w")

    pred, lm = run(RLM("q -> a: int, b: int, why, many: list[int]"), code, answer, factory)
    assert (pred.a, pred.b, pred.why, pred.many) == (7, 7, "so", [7, 7])
    assert "Count." in lm.script.calls[2][0]["content"]
    assert pred.usage["ad_hoc"] == {
        "Predict('text: str, topic: str -> score: int, why: str')": 1,
        "ChainOfThought('text: str -> score: int')": 1,
        "Predict('text: str -> score: int')": 2,
    }
    assert pred.usage["by_role"]["ad_hoc"]["calls"] == 4
    assert {call["kind"] for call in pred.trajectory[0]["calls"]} == {"ad_hoc"}


CLASSES = '''
import dspy
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Optional
class Kind(Enum):
    NEWS = "news"
    OPINION = "opinion"
@dataclass
class Source:
    title: str
    year: int
class Label(dspy.Signature):
    """Label the text."""
    text: str = dspy.InputField(desc="what to label")
    source: Optional[Source] = dspy.InputField()
    kind: Kind = dspy.OutputField()
    sources: list[Source] = dspy.OutputField()
    grade: Literal["a", "b"] = dspy.OutputField()
class Twice(dspy.Module):
    def __init__(self):
        super().__init__()
        self.label = dspy.Predict(Label)
    def forward(self, text):
        return self.label(text=text, source=Source("T", 2020))
found = Twice()("t")
SUBMIT(kind=found.kind, title=found.sources[0].title, year=found.sources[0]["year"], grade=found.grade)
'''


@everywhere
def test_class_style_signatures_and_programs_work_as_in_any_dspy_program(factory: Any) -> None:
    """With enums, dataclasses, literals and `import dspy`."""

    def answer(said: str) -> str:
        return fields(kind="news", sources='[{"title": "S", "year": 2001}]', grade="b")

    pred, lm = run(RLM("q -> kind, title, year: int, grade"), CLASSES, answer, factory)
    assert (pred.kind, pred.title, pred.year, pred.grade) == ("news", "S", 2001, "b")
    system, user = (message["content"] for message in lm.script.calls[1])
    assert "Label the text." in system
    assert "what to label" in system
    assert '"year": 2020' in user


@everywhere
def test_a_react_module_has_the_tools_of_the_run(factory: Any) -> None:
    """By name or as the function; others are refused."""
    seen: list[str] = []

    def search(text: str) -> str:
        """Search."""
        seen.append(text)
        return "found it"

    replies = [
        fields(next_thought="t", next_tool_name="search", next_tool_args='{"text": "sea"}'),
        fields(next_thought="t", next_tool_name="finish", next_tool_args="{}"),
        fields(reasoning="r", a="yes"),
    ]
    code = (
        "try:\n    dspy.ReAct('q -> a', tools=[len])\nexcept TypeError as e:\n    print(e)\n"
        "print(dspy.ReAct('q -> a', tools=[search], max_iters=3)(q='?').a)"
    )
    lm = ScriptedLM(replies, act=[block(code)], extract=[fields(a="yes")])
    with dspy.context(lm=lm, interpreter_factory=factory):
        pred = RLM("q -> a", tools=[search], max_iters=1)(q="?")
    assert seen == ["sea"]
    assert pred.trajectory[0]["output"].splitlines() == [
        "tools= takes the tools of this REPL (search), not functions written here",
        "yes",
    ]


def called(name: str, arguments: str) -> str:
    """Return a turn of a `dspy.ReActV2`."""
    return fields(next_thought="t", tool_calls=f'{{"tool_calls": [{{"name": "{name}", "args": {arguments}}}]}}')


@everywhere
def test_the_agent_that_dspys_own_rlm_offers_has_the_tools_of_the_run(factory: Any) -> None:
    """`dspy.ReActV2`; `dspy.Tool` around a tool is the tool, and a hook is asked before it is called."""
    seen: list[str] = []

    def search(text: str) -> str:
        """Search."""
        seen.append(text)
        return "found it"

    def review(name: str, arguments: dict[str, Any]) -> str | None:
        return "not this one" if arguments["text"] == "secret" else None

    replies = [
        called("search", '{"text": "sea"}'),
        called("search", '{"text": "secret"}'),
        called("submit", '{"a": 7}'),
    ]
    code = "print(dspy.ReActV2('q -> a: int', tools=[dspy.Tool(search)], max_iters=3)(q='?').a + 1)"
    lm = ScriptedLM(replies, act=[block(code)], extract=[fields(a="yes")])
    with dspy.context(lm=lm, interpreter_factory=factory):
        pred = RLM("q -> a", tools=[search], max_iters=1, on_tool=review)(q="?")
    assert pred.trajectory[0]["output"] == "8"
    assert seen == ["sea"]
    assert "not this one" in str(lm.script.calls[3])


@everywhere
def test_a_signature_may_be_a_dict_of_fields(factory: Any) -> None:
    """As `dspy.Signature` takes it."""
    code = (
        "rate = dspy.Signature({'text': (str, dspy.InputField(desc='a page')), 'n': (int, dspy.OutputField())}, 'Rate.')\n"
        "SUBMIT(a=dspy.Predict(rate)(text='x').n + dspy.Predict(rate.with_instructions('Again.'))(text='x').n)"
    )
    pred, lm = run(RLM("q -> a: int"), code, lambda _: fields(n="4"), factory)
    assert pred.a == 8
    systems = [call[0]["content"] for call in lm.script.calls[1:]]
    assert (
        ["Rate." in system for system in systems]
        == ["Again." not in system for system in systems]
        == [True, False]
    )
    assert "a page" in systems[0]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("dspy.Predict('no arrow')(a=1)", "signature"),
        ("dspy.Signature({'a': str})", "(str, dspy.InputField())"),
        ("dspy.Signature(['a'])", "(str, dspy.InputField())"),
        ("dspy.ReActV2('history -> a', tools=[])(history='x')", "Rename these input fields"),
        ("dspy.Predict('a -> b: Nonsense')(a=1)", "Nonsense"),
        ("dspy.Predict('a -> b')('x')", "keyword arguments"),
        ("dspy.Predict('a -> b')(c='x')", "Unknown argument"),
        ("dspy.Predict('a -> b')()", "a: missing"),
        ("dspy.Predict('a: int -> b')(a='x')", "expected int"),
        ("dspy.Predict('a -> b', api_base='http://x')(a='x')", "api_base"),
        ("dspy.Predict(3)", "a signature is"),
        ("dspy.ProgramOfThought('a -> b')", "ProgramOfThought"),
        ("dspy.RLM('a -> b', sub_lm=None)(a='x')", "sub_lm"),
        ("rlm_query('')", "non-empty prompt"),
        ("rlm_query_batched('x')", "list of prompts"),
        ("rlm_query_batched(['x'], ['a', 'b'])", "1 prompts and 2 contexts"),
    ],
)
def test_what_cannot_be_is_told_and_costs_nothing(play: Play, code: str, told: str) -> None:
    """The run goes on."""
    lm = ScriptedLM([block(code), block("SUBMIT(answer='a')")])
    played = play(RLM("q -> answer"), lm, q="?")
    assert told in played.outputs[0]
    assert len(lm.script.calls) == 2


def test_the_hosts_own_dspy_stays_what_it_is() -> None:
    """Also where code runs in the host's process."""
    run(RLM("q -> a"), "import dspy\nSUBMIT(a=dspy.__doc__)", listed)
    again = importlib.import_module("dspy")
    assert again is dspy is sys.modules["dspy"]
    assert hasattr(again, "LM")


# Children


def child_model(root: str, child: str) -> ScriptedLM:
    """Return a scripted model that writes `root` in a root, `child` in a child."""
    return ScriptedLM(act=lambda _: block(root), child=lambda _: block(child))


@everywhere
def test_a_child_works_in_a_repl_of_its_own_with_what_it_is_handed(factory: Any) -> None:
    """One level deeper, on the same ledger; what it did is in the parent's trajectory."""
    lm = child_model(
        "kept = 1\nSUBMIT(answer=rlm_query('Count the a.', context[:300]))",
        "assert 'kept' not in globals()\nSUBMIT(response=str(context.count('a')))",
    )
    with dspy.context(lm=lm, interpreter_factory=factory):
        pred = RLM("context, q -> answer: int")(context="ab" * 1000, q="?")
    assert pred.answer == 150
    (call,) = pred.trajectory[0]["calls"]
    assert (call["kind"], call["stop"], len(call["steps"])) == ("child", "submitted", 1)
    assert "context.count" in call["steps"][0]["code"]
    assert call["spent"]["calls"] == 1
    assert pred.usage["by_role"]["child.act"]["calls"] == 1
    assert "Count the a." in lm.script.calls[1][1]["content"]


@everywhere
def test_a_typed_child_gives_a_record(factory: Any) -> None:
    """`dspy.RLM(signature)(...)`, as in any DSPy program."""
    lm = child_model(
        "c = dspy.RLM('part -> n: int, words: list[str]', max_iters=3)(part='a b')\nSUBMIT(answer=c.words, n=c.n)",
        "SUBMIT(n=len(part), words=part.split())",
    )
    with dspy.context(lm=lm, interpreter_factory=factory):
        pred = RLM("q -> answer: list[str], n: float")(q="?")
    assert (pred.answer, pred.n) == (["a", "b"], 3)


@everywhere
def test_children_of_a_batch_run_at_once_and_in_order(factory: Any) -> None:
    """Each with its own interpreter."""
    together = threading.Barrier(3)

    def child(_: Any) -> str:
        together.wait(60)
        return block("SUBMIT(response=context)")

    root = "SUBMIT(answer=rlm_query_batched([('Say it.', 'x'), ('Say it.', 'y'), ('Say it.', 'z')]))"
    with dspy.context(lm=ScriptedLM(act=[block(root)], child=child), interpreter_factory=factory):
        assert RLM("q -> answer: list[str]")(q="?").answer == ["x", "y", "z"]


def test_an_input_that_is_handed_on_whole_does_not_cross(tmp_path: Path) -> None:
    """The child gets the parent's own `Text`, and the wire carries its name."""
    path = tmp_path / "a.md"
    path.write_text("ab" * 5_000, encoding="utf-8")
    sizes: list[int] = []

    class Watched(PythonInterpreter):
        def invoke_tool(self, tool_name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
            sizes.append(len(repr(kwargs)))
            return super().invoke_tool(tool_name, args, kwargs)

    lm = child_model(
        "try:\n    rlm_query('Count.', context)\nexcept SubCallError as e:\n    print(e)\nSUBMIT(answer=rlm_query('Count.', context))",
        "SUBMIT(response=str(len(context)))",
    )
    with dspy.context(lm=lm, interpreter_factory=Watched):
        pred = RLM("context -> answer: int")(context=Text.open(path))
    assert pred.answer == 10_000
    assert sizes
    assert max(sizes) < 1_000


def test_a_child_that_is_handed_most_of_the_input_is_asked_for_twice() -> None:
    """The first time it is told what to do instead, and nothing is spent."""
    lm = child_model(
        "SUBMIT(answer=str(rlm_query_batched([('Do it.', context[10:])])[0]))", "SUBMIT(response='r')"
    )
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        pred = RLM("context -> answer")(context="ab" * 5_000)
    assert "of 10,000 characters" in pred.answer
    assert "slices" in pred.answer
    assert len(lm.script.calls) == 1


def test_a_child_below_max_depth_is_refused_and_not_offered() -> None:
    """The message says what to do instead; deeper ones are allowed by `max_depth`."""
    code = "try:\n    answer = rlm_query('Do it.')\nexcept SubCallError as e:\n    answer = str(e)\nSUBMIT(response=answer)"

    def play_to(depth: int) -> tuple[Any, ScriptedLM]:
        lm = ScriptedLM(lambda messages: block(code))
        rlm = RLM("q -> response", limits=Limits(max_depth=depth, max_llm_calls=20))
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            return rlm(q="?"), lm

    for depth in (0, 1, 3):
        pred, lm = play_to(depth)
        assert f"max_depth={depth} is reached" in pred.response
        assert "llm_query" in pred.response
        shown = [calls[1]["content"] for calls in lm.script.calls]
        assert len(shown) == depth + 1
        assert ["rlm_query" in text for text in shown] == [True] * depth + [False]


def test_a_childs_turns_are_limited_with_all_sub_calls() -> None:
    """A child cannot spend more than its tree may."""
    lm = child_model("SUBMIT(answer=str(rlm_query_batched(['Do it.'])[0]))", "print(1)")
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        pred = RLM("q -> answer", max_llm_calls=3)(q="?")
    assert pred.usage["by_role"]["child.act"]["calls"] <= 3


def test_an_rlm_may_be_a_declared_sub() -> None:
    """It has a signature and limits of its own, and shares the ledger."""
    lm = child_model("SUBMIT(answer=deep('abc'))", "SUBMIT(n=len(part))")
    rlm = RLM("q -> answer: int", subs={"deep": RLM("part -> n: int", max_iters=2)})
    assert "subs.deep.act" in dict(rlm.named_predictors())
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        pred = rlm(q="?")
    assert pred.answer == 3
    assert pred.usage["by_role"].keys() == {"act", "child.act"}
    assert pred.trajectory[0]["calls"][0]["stop"] == "submitted"


# Async code

GATHERED = """
import asyncio
async def both():
    return await asyncio.gather(claims.acall('a'), llm_query.acall('b'), dspy.Predict('t -> s').acall(t='c'))
found = {}
SUBMIT(n=len(found), kinds=[type(f).__name__ for f in found])
"""


@pytest.mark.parametrize(
    ("factory", "how"),
    [
        (PythonInterpreter, "await both()"),
        (LocalPythonInterpreter, "await both()"),
        (dspy.LocalInterpreter, "asyncio.run(both())"),
    ],
)
def test_gathered_sub_calls_are_under_way_together(factory: Any, how: str) -> None:
    """Subs, prompts and modules written in the REPL have `acall`."""
    together = threading.Barrier(3)

    def answer(_: str) -> str:
        together.wait(60)
        return fields(claims='["x"]', s="y")

    pred, _ = run(RLM("q -> n: int, kinds: list[str]", subs=[Claims]), GATHERED.format(how), answer, factory)
    assert pred.n == 3
    assert pred.kinds == ["list", "str", "Prediction"]


@everywhere
def test_amap_and_as_completed(factory: Any) -> None:
    """In any interpreter by `asyncio.run`."""
    code = (
        "import asyncio\n"
        "async def main():\n"
        "    found = await claims.amap(['a', 'b c'])\n"
        "    for done in asyncio.as_completed([claims.acall(str(i)) for i in range(40)]):\n"
        "        found.append(await done)\n"
        "    return found\n"
        "found = asyncio.run(main())\n"
        "SUBMIT(n=len(found), first=found[1])"
    )
    pred, _ = run(RLM("q -> n: int, first: list[str]", subs=[Claims]), code, listed, factory)
    assert (pred.n, pred.first) == (42, ["b", "c"])


# The caller's context, in every thread and loop


class Spy(dspy.utils.BaseCallback):
    """Notes the innermost module that is being called when an LM is."""

    def __init__(self) -> None:
        self.parents: list[str | None] = []

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.parents.append(ACTIVE_CALL_ID.get())


@everywhere
@pytest.mark.parametrize("way", ["single", "map", "thread", "gather", "child", "ad_hoc"])
@pytest.mark.parametrize("awaiting", [False, True])
def test_what_the_caller_set_survives_every_thread_and_loop(factory: Any, way: str, awaiting: bool) -> None:
    """`dspy.context(lm=...)`, `settings.trace`, usage tracking, and the parent of a span."""
    code = {
        "single": "claims('a')",
        "map": "claims.map(['a', 'b', 'c'])",
        "thread": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as p:\n    list(p.map(claims, 'abc'))",
        "gather": "import asyncio\nasync def g():\n    await asyncio.gather(*[claims.acall(x) for x in 'abc'])\nasyncio.run(g())",
        "child": "rlm_query('Respond.')",
        "ad_hoc": "dspy.Predict('passage -> claims: list[str]').map(['a', 'b'])",
    }[way]
    spy, trace = Spy(), list[Any]()
    lm = ScriptedLM(
        lambda said: listed(said[-1]["content"]),
        act=[block(f"{code}\nSUBMIT(a='')")],
        child=[block("SUBMIT(response=claims('z')[0])")],
    )
    rlm = RLM("q -> a", subs=[Claims])
    with dspy.context(lm=lm, interpreter_factory=factory, trace=trace, track_usage=True, callbacks=[spy]):
        pred = asyncio.run(rlm.acall(q="?")) if awaiting else rlm(q="?")
    calls = len(lm.script.calls)
    assert calls > 1
    assert len(trace) == calls
    assert None not in spy.parents
    assert len(spy.parents) == calls
    used = pred.get_lm_usage()["scripted/lm"]
    assert used["completion_tokens"] == pred.usage["output_tokens"]
    assert pred.usage["calls"] == calls
