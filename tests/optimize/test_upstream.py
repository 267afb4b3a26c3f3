"""What DSPy's optimizers get wrong on an RLM (dspy 3.4.1), beside ours. A fault that is gone there fails here."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, signatures
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import upstream, with_feedback
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step, Trajectory
from tests.optimize.matrix_programs import ADVICE, PROGRAMS, ScriptedActor, Two, exact, examples
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Iterator

ASK = "question -> answer"


@pytest.fixture(autouse=True)
def code_runs_in_this_process() -> Iterator[None]:
    """Run all code of these tests in this process."""
    with dspy.context(interpreter_factory=LocalPythonInterpreter):
        yield


def inferred(optimizer: Any) -> tuple[Any, ScriptedActor, Any]:
    """Compile with an InferRules; return the program it was given, the model, and what it made."""
    student, lm = PROGRAMS["root and query"](), ScriptedActor()
    with dspy.context(lm=lm):
        made = optimizer(metric=exact, num_candidates=1, num_threads=1, max_labeled_demos=0)
        return student, lm, made.compile(student, trainset=examples(4), valset=examples(2, first=10))


def rules_asked(lm: ScriptedActor) -> list[str]:
    """Return what the model was shown when it was asked for rules."""
    return [
        call[-1]["content"]
        for call in lm.script.calls
        if "`examples_text`" in call[0]["content"] or "examples_text ## ]]" in call[-1]["content"]
    ]


def test_rules_are_induced_from_turns_and_nothing_but_the_candidate_is_changed() -> None:
    """Theirs shows no turn at all, and rewrites the signature of every RLM in the process."""
    before = signatures.Act.instructions
    student, lm, compiled = inferred(upstream.InferRules)
    assert signatures.Act.instructions == student.act.signature.instructions == before
    assert ADVICE in compiled.act.signature.instructions
    assert any("context.find(question" in text for text in rules_asked(lm))
    try:
        _, lm, _ = inferred(dspy.InferRules)
        assert signatures.Act.instructions != before
        assert not any("context.find(question" in text for text in rules_asked(lm))
    finally:
        signatures.Act.instructions = before
        signatures.Query.instructions = "Answer the prompt. Be brief and exact."


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        ("no fields", RuntimeError, "its reply held none. Use a stronger"),
        (dspy.LMError("down"), dspy.LMError, "down"),
    ],
)
def test_rules_that_were_not_given_end_in_an_error_that_says_so(reply: Any, kind: Any, said: str) -> None:
    """Theirs is an `AssertionError` without a message."""

    def actor(messages: Any) -> Any:
        return reply if "natural_language_rules" in messages[0]["content"] else played._reply(messages)

    played = ScriptedActor()
    for optimizer, raised, message in [(upstream.InferRules, kind, said), (dspy.InferRules, AssertionError, "^$")]:
        made: Any = optimizer(metric=exact, num_candidates=1, num_threads=1, max_labeled_demos=0)
        with dspy.context(lm=ScriptedLM(actor)), pytest.raises(raised, match=message):
            made.compile(PROGRAMS["root and query"](), trainset=examples(4), valset=examples(2, first=10))


def test_two_rlms_are_told_apart_and_no_prompt_shows_it() -> None:
    """GEPA finds a predictor's calls by comparing signatures."""
    plain, marked = Two(), upstream.tell_apart(Two())
    assert plain.find.act.signature.equals(plain.read.act.signature)
    assert not marked.find.act.signature.equals(marked.read.act.signature)
    calls = []
    for program in (plain, marked):
        lm = ScriptedActor()
        with dspy.context(lm=lm):
            program(**examples(1)[0].inputs())
        calls.append(lm.script.calls)
    assert calls[0] == calls[1]
    assert Two().find.act.signature.equals(plain.find.act.signature)


def test_gepa_reflects_on_each_rlms_own_turns() -> None:
    """The examples that a proposal is made from are of the predictor that it is for."""
    shown: dict[str, str] = {}

    def propose(candidate: Any, reflective_dataset: Any, components_to_update: list[str]) -> dict[str, str]:
        shown.update({name: str(reflective_dataset[name]) for name in components_to_update})
        return dict.fromkeys(components_to_update, ADVICE)

    optimizer = upstream.GEPA(
        with_feedback(exact), max_metric_calls=40, instruction_proposer=propose, skip_perfect_score=False
    )
    with dspy.context(lm=ScriptedActor()):
        optimizer.compile(Two(), trainset=examples(4), valset=examples(2, first=10))
    assert {"find.act", "read.act"} <= set(shown)
    assert "- fact: str," in shown["read.act"]
    assert "- context: str" in shown["find.act"]
    assert "- context: str" not in shown["read.act"]


def test_what_was_not_called_is_not_reflected_on() -> None:
    """The choice goes round among what the sampled runs called; if that is nothing, it goes round all the same."""
    candidate = {"act": "A.", "query": "Q."}
    state = SimpleNamespace(
        list_of_named_predictors=["act", "query"], named_predictor_id_to_update_next_for_program_candidate=[0]
    )
    rlm = upstream.tell_apart(RLM(ASK))

    def chosen(*called: Any) -> list[str]:
        runs: list[Any] = [{"trace": [(predictor, {}, {}) for predictor in called]}]
        return [upstream.CalledPredictors()(state, runs, [0.0], 0, candidate)[0] for _ in range(3)]

    assert chosen(rlm.act) == ["act", "act", "act"]
    assert chosen(rlm.act, rlm.query) == ["query", "act", "query"]
    assert set(chosen()) == {"act", "query"}


def advised(optimizer: Any) -> str:
    """Compile with a SIMBA; return what the model was shown when it was asked for advice."""
    lm = ScriptedActor()
    logging.disable(logging.WARNING)  # of types that DSPy writes itself
    try:
        with dspy.context(lm=lm):
            made = optimizer(metric=exact, bsize=4, num_candidates=4, max_steps=2, max_demos=0, num_threads=1)
            made.compile(PROGRAMS["root and query"](), trainset=examples(4), seed=1)
    finally:
        logging.disable(logging.NOTSET)
    asked = [call[-1]["content"] for call in lm.script.calls if "worse_program_trajectory" in call[-1]["content"]]
    assert asked
    return asked[0]


def test_optuna_wants_demos_of_every_predictor() -> None:
    """The documentation names it as the exception; a predictor that no run called has none."""
    made = dspy.BootstrapFewShotWithOptuna(exact, max_labeled_demos=0, num_candidate_programs=1, num_threads=1)
    with dspy.context(lm=ScriptedActor()), pytest.raises(ValueError, match="high"):
        made.compile(PROGRAMS["root"](), max_demos=2, trainset=examples(2))


def test_simba_is_shown_the_turns() -> None:
    """Theirs masks them."""
    assert "<non-serializable: Trajectory>" in advised(dspy.SIMBA)
    ours = advised(upstream.SIMBA)
    assert "<non-serializable" not in ours
    assert "print(found)" in ours.split("[[ ## better_program_trajectory ## ]]")[1]


def test_an_ensemble_is_saved_with_what_its_members_learned() -> None:
    """Theirs leaves out what a teleprompter has marked as compiled."""
    with dspy.context(lm=ScriptedLM(lambda _: block("SUBMIT(answer=question)"))):
        train = [dspy.Example(question="q", answer="q").with_inputs("question")]
        member = dspy.BootstrapFewShot(metric=exact, max_labeled_demos=0).compile(RLM(ASK), trainset=train)
    assert "programs[0].act" not in dspy.Ensemble().compile([member]).dump_state()
    assert upstream.Ensemble().compile([member]).dump_state()["programs[0].act"]["demos"]


def test_an_ensemble_is_saved_with_what_was_compiled_inside_its_members() -> None:
    """A part that was compiled before its program is frozen too."""
    member = Two()
    member.find.act.signature = member.find.act.signature.with_instructions("Look first.")
    member.find._compiled = True  # as an optimizer leaves it
    fresh = upstream.Ensemble().compile([Two()])
    fresh.load_state(upstream.Ensemble().compile([member]).dump_state())
    assert fresh.programs[0].find.act.signature.instructions == "Look first."
    assert member.find._compiled


def test_what_is_shown_is_short_plain_data() -> None:
    """Of long runs the last turns."""
    steps = tuple(Step(code=f"c{n}", output="o" * 50_000) for n in range(40))
    value = {"trajectory": Trajectory(steps=steps), "context": "x" * 10_000_000, "n": 1}
    shown = upstream.shown(value)
    assert shown["n"] == 1
    assert shown["trajectory"][-1]["code"] == "c39"
    assert len(str(shown)) < 16_000
