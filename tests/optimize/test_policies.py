"""Policies: saved with where they come from, used elsewhere, and promoted only if they are not worse."""

from __future__ import annotations

import json
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import RLM, signatures
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import Comparison, compare, load_policy, promote, save_policy, with_policy
from rlm_dspy.optimize.policy_provenance import acts_in
from rlm_dspy.optimize.statistics import paired, sign_test, wilson
from rlm_dspy.testing import ScriptedLM
from tests.optimize.matrix_programs import Two
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rlm_dspy.testing import Messages

ASK = "question -> answer"


@pytest.fixture(autouse=True)
def code_runs_in_this_process() -> Iterator[None]:
    """Run all code of these tests in this process."""
    with dspy.context(interpreter_factory=LocalPythonInterpreter):
        yield


def told(instructions: str, program: Any = None) -> Any:
    """Return a program whose `act` was told something."""
    program = program or RLM(ASK)
    for _, predictor in program.named_predictors():
        predictor.signature = predictor.signature.with_instructions(instructions)
    return program


def questions(count: int, first: int = 0) -> list[dspy.Example]:
    """Return examples whose answer is the question."""
    return [
        dspy.Example(question=f"q{n}", answer=f"q{n}").with_inputs("question") for n in range(first, first + count)
    ]


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Whether the answer is the label."""
    return bool(example.answer == prediction.answer)


def able(messages: Messages) -> str:
    """Answer right if told to be good; if told to be fair, unless the question ends in 0."""
    system, environment = messages[0]["content"], messages[-1]["content"]
    right = system.startswith("Good") or (system.startswith("Fair") and "0'" not in environment)
    return block("SUBMIT(answer=question)" if right else "SUBMIT(answer='no')")


def test_a_policy_keeps_where_it_comes_from(tmp_path: Path) -> None:
    """Model, optimizer, data, seeds, date, and scores with their interval."""
    path = tmp_path / "mine.json"
    with dspy.context(lm=ScriptedLM([])):
        save_policy(
            told("Good."),
            path,
            name="mine",
            optimizer="COPRO",
            data="d",
            seeds=[1],
            scores={"dev": [1, 0]},
            note="n",
        )
    content = json.loads(path.read_text())
    assert (content["name"], content["model"], content["version"]) == ("mine", "scripted/lm", 1)
    provenance = content["provenance"]
    assert (provenance["optimizer"], provenance["seeds"], provenance["note"]) == ("COPRO", [1], "n")
    assert provenance["scores"]["dev"]["mean"] == 0.5
    assert provenance["scores"]["dev"]["interval_95"] == list(wilson(1, 2))
    assert load_policy(path)["signature"]["instructions"] == "Good."
    assert RLM("pages -> topic", policy=path).act.signature.instructions == "Good."


def test_a_policy_holds_no_model(tmp_path: Path) -> None:
    """An LM's state may name servers and keys; a policy is given to others."""
    program = told("Good.")
    program.set_lm(dspy.LM("openai/hidden", api_key="secret", api_base="http://inside"))
    save_policy(program, tmp_path / "p.json", name="p", model="m")
    assert not {"secret", "inside", "hidden"} & set(re.findall(r"\w+", (tmp_path / "p.json").read_text()))


def test_a_policy_of_an_lm_that_cannot_be_saved_is_written(tmp_path: Path) -> None:
    """A policy holds no LM, so that of the candidate need not be one that can be saved."""
    program, path = told("Good."), tmp_path / "p.json"
    program.set_lm(ScriptedLM(able))
    with pytest.raises(TypeError, match="cannot be saved"):
        program.dump_state()
    with dspy.context(lm=ScriptedLM(able)):
        assert promote(program, told("Good."), questions(30), exact, path=path, name="p").not_worse
    assert load_policy(path)["signature"]["instructions"] == "Good."
    assert program.act.lm is not None


def test_of_several_rlms_one_is_named(tmp_path: Path) -> None:
    """The message lists them."""
    program = told("Good.", Two())
    with pytest.raises(ValueError, match=r"\['find\.act', 'read\.act'\]"):
        save_policy(program, tmp_path / "p.json", name="p")
    save_policy(program, tmp_path / "p.json", name="p", predictor="read.act")
    with pytest.raises(ValueError, match="contains no RLM"):
        save_policy(dspy.Predict(ASK), tmp_path / "p.json", name="p")


def test_a_policy_of_a_frozen_rlm_is_saved(tmp_path: Path) -> None:
    """What was compiled before is frozen for optimizers; it has learned something all the same."""
    program = told("Good.", Two())
    program.find._compiled = True
    save_policy(program, tmp_path / "free.json", name="p")
    program.read._compiled = True
    with pytest.raises(ValueError, match=r"name one of \['find\.act', 'read\.act'\]"):
        save_policy(program, tmp_path / "p.json", name="p")
    save_policy(program, tmp_path / "p.json", name="p", predictor="find.act")
    assert load_policy(tmp_path / "p.json")["signature"]["instructions"] == "Good."


def test_the_candidates_that_an_optimizer_keeps_are_no_rlms_of_a_program(tmp_path: Path) -> None:
    """Of a frozen one, that of the program is saved."""
    frozen: Any = RLM("question -> answer")
    frozen.candidate_programs = [{"program": RLM("question -> answer"), "score": 1.0}]
    frozen._compiled = True
    program: Any = dspy.Module()
    program.find = frozen
    save_policy(program, tmp_path / "p.json", name="p")
    assert list(acts_in(program)) == ["find.act"]


def test_a_policy_is_put_into_every_rlm_of_a_copy(tmp_path: Path) -> None:
    """And taken out again with None; the program itself stays as it was."""
    save_policy(told("Good."), tmp_path / "p.json", name="p")
    program = Two()
    changed = with_policy(program, tmp_path / "p.json")
    assert [p.signature.instructions for n, p in changed.named_predictors() if n.endswith("act")] == ["Good."] * 2
    assert program.find.act.signature.instructions == signatures.Act.instructions
    assert with_policy(changed, None).find.act.signature.instructions == signatures.Act.instructions


def test_a_better_policy_is_promoted_and_the_comparison_kept(tmp_path: Path) -> None:
    """Both run on the same examples."""
    path = tmp_path / "p.json"
    with dspy.context(lm=ScriptedLM(able)):
        compared = promote(told("Good."), told("Fair."), questions(30), exact, path=path, name="p", optimizer="O")
    assert compared.not_worse
    assert (compared.wins, compared.losses) == (3, 0)
    kept = json.loads(path.read_text())["provenance"]
    assert kept["promotion"]["difference"] == pytest.approx(0.1)
    assert kept["promotion"]["candidate"]["mean"] == 1.0
    assert kept["scores"]["held out"]["of"] == 30


def test_a_worse_policy_is_refused_and_the_file_left_alone(tmp_path: Path) -> None:
    """With the reason and the numbers."""
    path = tmp_path / "p.json"
    path.write_text("as it was")
    with dspy.context(lm=ScriptedLM(able)):
        compared = promote(told("Fair."), told("Good."), questions(30), exact, path=path, name="p")
    assert not compared.not_worse
    assert path.read_text() == "as it was"
    assert compared.reason.startswith("Not promoted, it scored less: -0.100 on 30 examples")


def test_too_few_examples_and_seen_ones_are_refused(tmp_path: Path) -> None:
    """They could not tell."""
    both = told("Good."), told("Fair.")
    with pytest.raises(ValueError, match="at least 20"):
        promote(*both, questions(19), exact, path=tmp_path / "p.json", name="p")
    with pytest.raises(ValueError, match="5 of the 30 examples were seen"):
        promote(*both, questions(30), exact, path=tmp_path / "p.json", name="p", seen=questions(10, first=25))


def test_repeated_examples_are_refused(tmp_path: Path) -> None:
    """They would look like more than they are."""
    rlm = RLM(ASK)
    with pytest.raises(ValueError, match="18 of the 24 examples are repeated"):
        promote(rlm, rlm, questions(6) * 4, exact, path=tmp_path / "mine.json", name="x")


def test_a_candidate_that_raises_scores_nothing_an_incumbent_is_left_out() -> None:
    """A provider that fails while the incumbent is scored is no gain of the candidate."""
    right: Any = block("SUBMIT(answer=question)")
    replies: list[Any] = [dspy.LMError("down"), right, right, right, right, dspy.LMError("down")]
    with dspy.context(lm=ScriptedLM(replies)):
        compared = compare(RLM(ASK), RLM(ASK), questions(3), exact)
    assert (compared.candidate, compared.incumbent, compared.left_out) == ((0.0, 1.0), (1.0, 1.0), 1)
    assert "1 more left out" in compared.seen


def test_a_metric_that_begins_to_fail_promotes_nothing(tmp_path: Path) -> None:
    """As a judge whose quota ends while the incumbent is scored."""
    left = [True] * 30

    def judge(example: Any, prediction: Any, trace: Any = None) -> bool:
        left.pop()
        return exact(example, prediction)

    with (
        dspy.context(lm=ScriptedLM(lambda _: block("SUBMIT(answer=question)"))),
        pytest.raises(ValueError, match="The metric failed on every example: IndexError"),
    ):
        promote(RLM(ASK), RLM(ASK), questions(30), judge, path=tmp_path / "p.json", name="p")
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("program", "example", "said"),
    [
        (ASK, dspy.Example(question="q", answer="q"), "has no inputs set"),
        ("question, topic -> answer", questions(1)[0], "The program failed on every example: .*topic"),
    ],
)
def test_a_comparison_in_which_nothing_ran_is_an_error(program: str, example: dspy.Example, said: str) -> None:
    with dspy.context(lm=ScriptedLM([])), pytest.raises(ValueError, match=said):
        compare(RLM(program), RLM(program), [example], exact)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder in which nothing can be written")
def test_a_file_that_cannot_be_written_is_told_before_anything_is_paid() -> None:
    lm = ScriptedLM([])
    with dspy.context(lm=lm), pytest.raises(OSError, match=r"/proc/p\.json'"):
        promote(RLM(ASK), RLM(ASK), questions(30), exact, path="/proc/p.json", name="p")
    assert lm.script.calls == []


def test_a_score_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Invalid score nan"):
        save_policy(RLM(ASK), tmp_path / "p.json", name="p", scores={"dev": [1.0, math.nan]})


@pytest.mark.parametrize(("count", "enough"), [(10, False), (30, True), (200, True)])
def test_equal_results_promote_only_if_there_are_enough(count: int, enough: bool) -> None:
    """On ten examples two policies look alike by chance."""
    assert Comparison((1.0,) * count, (1.0,) * count).not_worse is enough


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_what_scored_less_is_never_promoted(pairs: list[tuple[bool, bool]]) -> None:
    """Whatever the interval says; and of two programs at most one beats the other."""
    mine, its = (tuple(float(score) for score in scores) for scores in zip(*pairs, strict=True))
    one, other = Comparison(mine, its), Comparison(its, mine)
    assert not (one.not_worse and sum(mine) < sum(its))
    if one.not_worse and other.not_worse:
        assert sum(mine) == sum(its)


def test_intervals_are_those_of_the_books() -> None:
    """Wilson 1927; Agresti and Min 2005; the exact test of McNemar by counting."""
    assert wilson(9, 12) == pytest.approx((0.4677, 0.9111), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    more, fewer, all_of = 5 + 0.5, 2 + 0.5, 20 + 2  # half a pair more in each cell of the table
    half = 1.959964 * math.sqrt(more + fewer - (more - fewer) ** 2 / all_of) / all_of
    expected = ((more - fewer) / all_of - half, (more - fewer) / all_of + half)
    assert paired([1] * 5 + [-1] * 2 + [0] * 13) == pytest.approx(expected)
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(0, 0) == 1.0
    assert sign_test(3, 1) == pytest.approx(2 * 5 / 16)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50))
def test_an_interval_of_differences_has_a_middle_and_stays_in_range(differences: list[float]) -> None:
    """Between -1 and 1, the shrunken mean inside."""
    low, high = paired(differences)
    assert -1 <= low <= sum(differences) / (len(differences) + 2) <= high <= 1


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ([], "act: Input should be"),
        ({"signature": {}, "demos": []}, "act.signature.instructions: Field required"),
        ({"signature": {"instructions": "Go."}}, "act.demos: Field required"),
        ({"signature": {"instructions": "Go."}, "demos": []}, "act.signature.fields: Field required"),
        ({"signature": {"instructions": "Go."}, "demos": ["x"]}, "act.demos.0: Input should be"),
        (
            {"signature": {"instructions": "Go."}, "demos": [{"code": 1}]},
            "act.demos.0.code: Input should be a valid string",
        ),
        (
            {"signature": {"instructions": "Go."}, "demos": [{"trajectory": {"steps": 1}}]},
            "act.demos.0.trajectory",
        ),
    ],
)
def test_a_file_that_is_no_policy_is_told_so_when_it_is_loaded(act: Any, said: str, tmp_path: Path) -> None:
    """Not at the first turn of every run."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"version": 1, "name": "x", "model": "", "provenance": {}, "act": act}))
    with pytest.raises(ValueError, match="Invalid policy") as caught:
        RLM("question -> answer", policy=path)
    assert said in str(caught.value)


def test_a_policy_of_a_newer_release_says_so(tmp_path: Path) -> None:
    """The fix is a newer release of this package."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"version": 2, "act": []}))
    with pytest.raises(ValueError, match="it is of version 2, and this release reads 1; install a newer one"):
        RLM("question -> answer", policy=path)


def test_an_empty_name_of_a_policy_is_refused() -> None:
    """A run without the policy that was meant would say nothing of it."""
    with pytest.raises(ValueError, match="Invalid policy ''"):
        RLM("question -> answer", policy="")


def test_a_policy_gives_no_model_whatever_its_file_says(tmp_path: Path) -> None:
    """Nor a key, nor an address that inputs would be sent to."""
    path = tmp_path / "mine.json"
    save_policy(RLM("question -> answer"), path, name="x", model="m")
    content = json.loads(path.read_text())
    content["act"]["lm"] = {"model": "openai/elsewhere", "api_key": "sk-theirs"}
    path.write_text(json.dumps(content))
    assert RLM("question -> answer", policy=path).act.lm is None


def test_a_policy_sets_no_option_of_the_predictor(tmp_path: Path) -> None:
    """A file from elsewhere could name an address, which would be sent the key of the model."""
    path = tmp_path / "mine.json"
    save_policy(RLM(ASK), path, name="x", model="m")
    content = json.loads(path.read_text())
    content["act"] |= {"config": {"api_base": "http://elsewhere"}, "callbacks": [1], "forward": "x"}
    path.write_text(json.dumps(content))
    for rlm in (RLM(ASK, policy=path), with_policy(RLM(ASK), path)):
        assert (rlm.act.config, rlm.act.callbacks, callable(rlm.act.forward)) == ({}, [], True)


def test_a_policy_is_written_by_many_at_once(tmp_path: Path) -> None:
    """What is read is always whole."""
    path = tmp_path / "mine.json"
    rlm = RLM("question -> answer")
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(save_policy, rlm, path, name=str(n), model="m") for n in range(100)]:
            done.result()
    assert RLM("question -> answer", policy=path).act
    assert list(tmp_path.iterdir()) == [path]


def test_scores_that_are_no_shares_have_no_interval(tmp_path: Path) -> None:
    """They are kept all the same."""
    path = tmp_path / "mine.json"
    save_policy(RLM("question -> answer"), path, name="x", model="m", scores={"dev": [40.0, 60.0]})
    kept = json.loads(path.read_text())["provenance"]["scores"]["dev"]
    assert kept == {"mean": 50.0, "of": 2, "interval_95": None}


def broken(*_: Any) -> float:
    raise KeyError("label")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (broken, "failed on every example: KeyError"),
        (lambda *_: 40.0, "returned 40; to compare"),
        (lambda *_: float("inf"), "failed on every example: ValueError"),
    ],
)
def test_a_metric_of_no_use_promotes_nothing(metric: Any, said: str, tmp_path: Path) -> None:
    """It is told, and the file left alone."""
    rlm = RLM("question -> answer")
    with dspy.context(lm=ScriptedLM(lambda _: block("SUBMIT(answer='x')"))), pytest.raises(ValueError, match=said):
        promote(rlm, rlm, questions(20), metric, path=tmp_path / "mine.json", name="x")
    assert not (tmp_path / "mine.json").exists()


def test_a_candidate_that_scored_nothing_has_shown_nothing() -> None:
    """Though it is not worse than another that did not either."""
    compared = Comparison((0.0,) * 200, (0.0,) * 200)
    assert not compared.not_worse
    assert "it scored nothing" in compared.reason


def test_a_program_in_the_place_of_a_policy_is_told_from_one(tmp_path: Path) -> None:
    """With what makes a policy of it, or loads its state."""
    compiled: Any = RLM("q -> a", policy=None)
    with pytest.raises(TypeError, match=r"path of a file, not a RLM. Save that of a program with .*save_policy\("):
        RLM("q -> a", policy=compiled)
    compiled.save(tmp_path / "state.json")
    with pytest.raises(ValueError, match=r"it is the state of a program, which program.load\(path\) loads"):
        RLM("q -> a", policy=tmp_path / "state.json")
