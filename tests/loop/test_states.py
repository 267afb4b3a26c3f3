"""States that were saved: of an RLM, of a part of one, of `dspy.RLM`, and of anything else."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from pathlib import Path

ASK = "context, question -> answer"


def learned(instructions: str = "Learned.", **options: Any) -> RLM:
    """Return an RLM whose predictors have learned something."""
    rlm = RLM(ASK, policy=None, **options)
    for _, predictor in rlm.named_predictors():
        predictor.signature = predictor.signature.with_instructions(instructions)
    return rlm


def instructions_of(rlm: RLM) -> dict[str, str]:
    """Return the instructions of each predictor."""
    return {name: predictor.signature.instructions for name, predictor in rlm.named_predictors()}


def test_a_file_of_dspys_rlm_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Its instructions and demos are about other prompts; nothing of the module changes."""
    dspy.RLM(ASK).save(tmp_path / "theirs.json")
    rlm = learned()
    before = json.dumps(rlm.dump_state())
    with pytest.raises(ValueError, match=r"Invalid state: it has 'generate_action', 'extract'.* Compile this RLM"):
        rlm.load(tmp_path / "theirs.json")
    assert json.dumps(rlm.dump_state()) == before


def test_a_state_keeps_the_texts_of_the_signature(tmp_path: Path) -> None:
    """As that of `dspy.RLM` does; a class of the user's stays if its texts are those of the state."""
    saved = dspy.Signature("text -> words: int", "Count.").with_updated_fields("text", desc="a page")
    RLM(saved).save(tmp_path / "rlm.json")
    rlm = RLM("text -> words: int")
    rlm.load(tmp_path / "rlm.json")
    assert rlm.signature.instructions == "Count."
    assert rlm.signature.fields["text"].json_schema_extra["desc"] == "a page"
    same = RLM(saved)
    same.load(tmp_path / "rlm.json")
    assert same.signature is saved


def test_a_state_of_another_task_leaves_the_signature_as_it_is(tmp_path: Path) -> None:
    """What `act` learned does not depend on a task; so do states of before signatures were saved."""
    rlm, other = learned(), RLM("page -> topic", policy=None)
    other.load_state(rlm.dump_state())
    assert other.act.signature.instructions == "Learned."
    assert other.signature.instructions == RLM("page -> topic").signature.instructions
    old = {name: part for name, part in rlm.dump_state().items() if name != "signature"}
    again = RLM(dspy.Signature(ASK, "Mine."), policy=None)
    again.load_state(old)
    assert (again.signature.instructions, again.act.signature.instructions) == ("Mine.", "Learned.")


class Program(dspy.Module):
    """A program with an RLM in it."""

    def __init__(self, kind: type[dspy.Module]) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> plan")
        self.find = kind(ASK)


def test_a_program_with_dspys_rlm_in_it_is_refused_in_the_same_words(tmp_path: Path) -> None:
    """And a program without one that lacks something gets DSPy's error."""
    Program(dspy.RLM).save(tmp_path / "theirs.json")
    ours = Program(RLM)
    before = json.dumps(ours.dump_state())
    with pytest.raises(
        ValueError, match=r"'find\.generate_action', 'find\.extract', but .* 'find\.act'"
    ) as caught:
        ours.load(tmp_path / "theirs.json")
    assert "Compile this RLM instead" in str(caught.value)
    assert json.dumps(ours.dump_state()) == before
    ours.save(tmp_path / "ours.json")
    ours.load(tmp_path / "ours.json")
    for program in (ours, Program(dspy.ChainOfThought)):
        with pytest.raises(KeyError, match="plan"):
            program.load_state({name: part for name, part in program.dump_state().items() if name != "plan"})


class Several(dspy.Module):
    """A program with RLMs in a list and in a dict; one has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.in_list, self.in_dict = [RLM(ASK), RLM(ASK)], {"x": RLM(ASK)}
        self.again = self.in_list[0]
        self.write = dspy.Predict("answer -> text")


@pytest.mark.parametrize("name", ["in_list[0]", "in_list[1]", "in_dict['x']"])
def test_a_program_says_the_state_of_which_of_its_rlms_is_missing(name: str) -> None:
    """By the name that it has in states."""
    state = {key: part for key, part in Several().dump_state().items() if not key.startswith(f"{name}.")}
    with pytest.raises(ValueError, match=re.escape(f"predictors of this RLM are {f'{name}.act'!r}, ")):
        Several().load_state(state)


def test_a_predictor_of_an_rlm_that_a_programs_state_lacks_stays_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As of a program that was saved before its RLM had a sub: the RLM alone loads its state too."""
    old, program = Program(RLM), Program(RLM)
    old.find.act.signature = old.find.act.signature.with_instructions("Learned.")
    program.find = RLM(ASK, policy=None, subs={"gist": "text -> gist"})
    lm = program.find.subs.gist.lm = ScriptedLM([])
    program.load_state({**old.dump_state(), "find.subs.gone": {}})
    assert program.find.act.signature.instructions == "Learned."
    assert program.find.subs.gist.lm is lm
    assert "this program, so left as they are: ['find.subs.gist', 'find.subs.gone']" in caplog.text


def test_a_missing_predictor_beside_the_rlms_of_a_program_is_not_blamed_on_them() -> None:
    state = {key: part for key, part in Several().dump_state().items() if key != "write"}
    with pytest.raises(KeyError, match="write"):
        Several().load_state(state)


def test_a_state_of_a_program_that_holds_this_one_is_told_with_its_names() -> None:
    """As that of `batch.on(program)`, whose names begin with `program`."""
    state = {f"program.{key}": part for key, part in Several().dump_state().items()}
    with pytest.raises(ValueError, match=r"Invalid state: it has 'program\.in_list\[0\]\.act'"):
        Several().load_state(state)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (dspy.Predict("q -> a"), "of one predictor with rlm.act.load_state"),
        (dspy.ChainOfThought("q -> a"), "Invalid state: it has 'predict'"),
        (dspy.ReAct("q -> a", tools=[]), "Invalid state: it has 'react', 'extract.predict'"),
    ],
)
def test_a_state_of_another_program_is_refused_by_name(program: dspy.Module, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        RLM(ASK).load_state(program.dump_state())
    assert "the predictors of this RLM are 'act', 'query'" in str(caught.value)


@pytest.mark.parametrize(("state", "told"), [({}, "nothing"), ({"metadata": {}}, "'metadata'")])
def test_an_empty_state_is_refused(state: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"Invalid state: it has {told}"):
        RLM(ASK).load_state(state)


def test_a_file_that_save_did_not_write_is_refused(tmp_path: Path) -> None:
    """A policy for example, which is the state of `act` and what is said of it."""
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"act": learned().act.dump_state()}))
    with pytest.raises(ValueError, match=r"policy.json has no 'metadata'.* RLM\(policy=\.\.\.\)"):
        RLM(ASK).load(path)


@pytest.mark.parametrize("text", ["[1]", '"text"', "3", "no JSON", ""])
def test_a_file_that_is_no_json_object_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"state.json is not a JSON object .* so `save` did not write it"):
        RLM(ASK).load(path)


def test_half_of_a_predictors_state_is_refused_and_changes_nothing() -> None:
    rlm, state = RLM(ASK, policy=None), learned().dump_state()
    before = instructions_of(rlm)
    with pytest.raises(ValueError, match="each with its signature and demos"):
        rlm.load_state({**state, "query": {"lm": None}})
    assert instructions_of(rlm) == before


def test_a_predictor_that_the_state_lacks_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """As of a program that was saved before it had a sub; one that is left over is left out. Both are logged."""
    old = learned(subs={"gone": "text -> gist"}).dump_state()
    rlm = RLM(ASK, policy=None, subs={"gist": "text -> gist"})
    before = instructions_of(rlm)
    with caplog.at_level("WARNING", "dspy.rlm_dspy"):
        rlm.load_state({name: part for name, part in old.items() if name != "query"})
    after = instructions_of(rlm)
    assert after.pop("act") == "Learned."
    assert after == {name: before[name] for name in ("query", "subs.gist")}
    assert "so left as they are: ['query', 'subs.gist', 'subs.gone']" in caplog.text


def test_a_state_of_before_dspy_saved_lms_is_loaded() -> None:
    state = learned().dump_state()
    for name in ("act", "query"):
        del state[name]["lm"]
    rlm = RLM(ASK, policy=None)
    rlm.load_state(state)
    assert set(instructions_of(rlm).values()) == {"Learned."}


@pytest.mark.parametrize(("name", "instead"), [("generate_action", "`act`"), ("extract", "made for each call")])
def test_a_predictor_of_dspys_rlm_is_missing_with_a_hint(name: str, instead: str) -> None:
    rlm = RLM(ASK)
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'.*{instead}"):
        getattr(rlm, name)
    assert not hasattr(rlm, name)
    assert not hasattr(rlm, "anything_else")


@pytest.mark.parametrize("part", [None, [], "text"])
def test_a_state_of_a_predictor_that_is_no_dict_is_refused(part: Any) -> None:
    rlm = RLM(ASK)
    with pytest.raises(ValueError, match="each with its signature and demos"):
        rlm.load_state({**rlm.dump_state(), "act": part})


def test_a_state_holds_no_password_of_an_address(tmp_path: Path) -> None:
    """As it holds no key; DSPy loads no address anyway."""
    rlm = RLM(ASK)
    rlm.set_lm(dspy.LM("openai/x", api_key="mine-abcdefghijklmnop", api_base="http://user:secret@localhost:1/v1"))
    rlm.save(tmp_path / "state.json")
    state = (tmp_path / "state.json").read_text()
    assert "http://***@localhost:1/v1" in state
    assert "secret" not in state
    assert "mine-abc" not in state
