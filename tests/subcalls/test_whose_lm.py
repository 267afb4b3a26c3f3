"""Whose LM answers what: `set_lm` and a predictor's own LM reach all that is done in their name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.errors import UnknownPrice
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields
from tests.subcalls.test_subs import Claims

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages

ROOT = "The root task."
EVERYTHING = """
said = [llm_query('prompt?'), dspy.Predict('t -> s')(t='a').s, dspy.ChainOfThought('t -> s')(t='b').s]
said += [dspy.ReAct('t -> s', tools=[search])(t='c').s, claims('d')[0], rlm_query('Respond.')]
print(said, 'w ' * 1_000)
"""


def search(query: str) -> str:
    """Find it."""
    return query


class Heard:
    """A model that answers all that a run asks, and remembers what it was asked as."""

    def __init__(self, code: str = EVERYTHING, name: str = "lm", child: str = "") -> None:
        self.name = name
        self.lm = ScriptedLM(
            self.reply,
            act=lambda _: block(code),
            child=lambda _: block(child or f"SUBMIT(response={name!r})"),
            query=lambda _: name,
        )

    @property
    def roles(self) -> list[str]:
        """What it was asked as, in the order of the calls."""
        return self.lm.script.roles

    def reply(self, _: Messages) -> str:
        """Fill in every field that a module asks for."""
        return fields(
            **dict.fromkeys(("reasoning", "s", "summary", "answer", "next_thought"), self.name),
            next_tool_name="finish",
            next_tool_args="{}",
            claims=f'["{self.name}"]',
        )


def rlm_of(**options: Any) -> RLM:
    """Return an RLM of three turns that asks everything in each, is folded, and never submits."""
    limits = Limits(max_iters=3, max_context_tokens=1_000, max_llm_calls=60)
    signature = dspy.Signature("q -> answer", ROOT)
    return RLM(signature, limits=limits, tools=[search], subs=[Claims], policy=None, **options)


def heard_by(rlm: RLM, in_force: Heard | None, *others: Heard) -> dict[str, set[str]]:
    """Run, and return by the name of each model what it was asked as."""
    with dspy.context(lm=in_force and in_force.lm, interpreter_factory=LocalPythonInterpreter):
        prediction = rlm(q="?")
    assert prediction.stop == "extracted"
    assert "Error" not in str([step["output"] for step in prediction.trajectory])
    return {each.name: set(each.roles) for each in (*((in_force,) if in_force else ()), *others)}


ACTS = {"act", "extract", "fold"}
CHILD = "child.act"
ASKS = {"query", "ad_hoc", "claims"}


@pytest.mark.parametrize("with_another", [False, True])
def test_set_lm_reaches_all_that_a_run_asks(with_another: bool) -> None:
    """Without an LM in force, and with another one, which then hears of nothing."""
    mine, other = Heard(name="mine"), Heard(name="other")
    rlm = rlm_of()
    rlm.set_lm(mine.lm)
    assert rlm.get_lm() is mine.lm
    heard = heard_by(rlm, other if with_another else None, mine)
    assert heard["mine"] == {*ACTS, *ASKS, CHILD}
    assert heard.get("other", set()) == set()


def test_the_lm_in_force_answers_where_nobody_has_another() -> None:
    """As `dspy.context(lm=...)` has it."""
    assert heard_by(rlm_of(), Heard(name="global"))["global"] == {*ACTS, *ASKS, CHILD}


def test_acts_own_lm_takes_turns_folds_and_extracts() -> None:
    """Of children too; what code asks is the LM's in force."""
    mine, rlm = Heard(name="mine"), rlm_of()
    rlm.act.lm = mine.lm
    assert heard_by(rlm, Heard(name="global"), mine) == {"mine": {*ACTS, CHILD}, "global": ASKS}


def test_acts_own_lm_answers_all_if_there_is_no_other() -> None:
    """The run does not die of its first sub-call."""
    mine, rlm = Heard(name="mine"), rlm_of()
    rlm.act.lm = mine.lm
    assert heard_by(rlm, None, mine)["mine"] == {*ACTS, *ASKS, CHILD}


def test_querys_own_lm_answers_prompts_and_modules_written_in_the_repl() -> None:
    """Declared subs have LMs of their own, or that in force."""
    mine, rlm = Heard(name="mine"), rlm_of()
    rlm.query.lm = mine.lm
    heard = heard_by(rlm, Heard(name="global"), mine)
    assert heard == {"mine": {"query", "ad_hoc"}, "global": {*ACTS, CHILD, "claims"}}


@pytest.mark.parametrize("set_all", [False, True])
def test_a_sub_lm_answers_what_code_asks_and_takes_the_turns_of_children(set_all: bool) -> None:
    """As it is documented; also if `set_lm` gave all predictors one."""
    small, large = Heard(name="small"), Heard(name="large")
    rlm = rlm_of(sub_lm=small.lm)
    if set_all:
        rlm.set_lm(large.lm)
        assert heard_by(rlm, None, small, large) == {"large": ACTS, "small": ASKS | {CHILD}}
    else:
        assert heard_by(rlm, large, small) == {"large": ACTS, "small": ASKS | {CHILD}}


def test_an_rlm_among_the_subs_keeps_the_lm_of_its_own_act() -> None:
    """Its turns are its own; its `sub_lm` answers what its code asks."""
    deep_code = "SUBMIT(n=llm_query('prompt?'))"
    own, small, root = Heard(name="own", child=deep_code), Heard(name="small"), Heard("print(deep('x'))", "root")
    deep = RLM(dspy.Signature("part -> n", ROOT), sub_lm=small.lm, policy=None)
    deep.act.lm = own.lm
    rlm = RLM(dspy.Signature("q -> answer", ROOT), subs={"deep": deep}, max_iters=1, policy=None)
    assert heard_by(rlm, root, own, small) == {
        "root": {"act", "extract"},
        "own": {CHILD},
        "small": {"child.query"},
    }


@pytest.mark.parametrize("way", [dspy.BestOfN, dspy.Refine])
def test_the_lms_that_optimizers_set_for_a_while_extract_too(way: Callable[..., Any]) -> None:
    """Each attempt has an LM of its own."""
    mine, other = Heard("print(1)", "mine"), Heard(name="other")
    rlm = RLM(dspy.Signature("q -> answer", ROOT), max_iters=1, policy=None)
    rlm.set_lm(mine.lm)
    best = way(rlm, N=2, reward_fn=lambda _, prediction: 0.0 if prediction.answer is None else 0.5, threshold=1.0)
    with dspy.context(lm=other.lm, interpreter_factory=LocalPythonInterpreter):
        assert best(q="?").answer == "mine"
    assert "extract" not in other.roles
    assert mine.roles.count("extract") == 2


def test_evaluate_and_threads_keep_whose_lm_it_is() -> None:
    """`dspy.Evaluate` calls the program in threads of its own."""
    mine, other = Heard("print(1)", "mine"), Heard(name="other")
    rlm = RLM(dspy.Signature("q -> answer", ROOT), max_iters=1, policy=None)
    rlm.set_lm(mine.lm)
    examples = [dspy.Example(q=str(n), answer="mine").with_inputs("q") for n in range(4)]
    options: dict[str, Any] = {"num_threads": 2, "display_progress": False}
    evaluate = dspy.Evaluate(devset=examples, metric=lambda e, p, trace=None: e.answer == p.answer, **options)
    with dspy.context(lm=other.lm, interpreter_factory=LocalPythonInterpreter):
        assert evaluate(rlm).score == 100
    assert other.roles == []


def test_the_price_of_the_lm_that_is_used_is_what_counts() -> None:
    """Not that of the one in force."""
    rlm = RLM("q -> answer", limits=Limits(max_cost=1.0, prices={"scripted/lm": (1.0, 1.0)}), policy=None)
    rlm.set_lm(ScriptedLM([block("SUBMIT(answer='a')")]))
    unpriced = dspy.LM("nobody/knows", api_key="k")
    with dspy.context(lm=unpriced, interpreter_factory=LocalPythonInterpreter):
        prediction = rlm(q="?")
    assert prediction.usage["by_model"].keys() == {"scripted/lm"}
    assert prediction.usage["cost"] > 0
    rlm.set_lm(unpriced)
    with (
        dspy.context(lm=ScriptedLM([]), interpreter_factory=LocalPythonInterpreter),
        pytest.raises(UnknownPrice, match="nobody/knows"),
    ):
        rlm(q="?")


def test_options_of_act_are_those_of_turns_alone() -> None:
    """`config` given to the predictor goes with its calls."""
    seen: list[Any] = []

    class Watched(ScriptedLM):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs.get("temperature"))
            return super().__call__(*args, **kwargs)

    rlm = RLM("q -> answer", max_iters=1, policy=None)
    rlm.act.config = {"temperature": 0.9}
    with dspy.context(
        lm=Watched([block("print(1)"), fields(answer="a")]), interpreter_factory=LocalPythonInterpreter
    ):
        assert rlm(q="?").answer == "a"
    assert seen == [0.9, None]
