"""The conversation of a run: it only grows, and demos stand in it as short worked conversations."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rlm_dspy import RLM, Text, signatures
from rlm_dspy.prompt.adapter import Act, ReplAdapter
from rlm_dspy.prompt.nearest_demos import demos_for_run
from rlm_dspy.signatures import Environment
from rlm_dspy.text import clip
from rlm_dspy.trajectory import Step, Trajectory
from tests.playing import block, fields

if TYPE_CHECKING:
    from tests.playing import Play

TEN_TURNS: list[str | None] = [
    block("print('x' * 20_000)"),
    "I would rather talk.",
    block("1 / 0"),
    block("SUBMIT(answer='no number')"),
    None,
    "```\n# Later.\n```",
    block("x = ("),
    "```bash\nls\n```",
    block("SUBMIT(wrong=1)"),
    block("SUBMIT(answer=10)"),
]


def test_each_turns_messages_are_an_exact_prefix_of_the_next_turns(play: Play) -> None:
    """Over outputs, errors, refusals and replies without code: two messages more, nothing changed before."""
    played = play(RLM("question -> answer: int", max_iters=10), TEN_TURNS, question="?")
    assert played.kinds == [
        *("output", "no_code", "error", "refused", "no_code", "no_code", "error", "no_code", "error", "submitted")
    ]
    assert len(played.calls) == 10
    for before, after in zip(played.calls, played.calls[1:], strict=False):
        assert after[: len(before)] == before
        assert [message["role"] for message in after[len(before) :]] == ["assistant", "user"]


def test_a_repeated_turn_is_told_and_not_shown(play: Play) -> None:
    """Qwen2.5-Coder-1.5B wrote a block a third time where it saw it twice, and another one where it did not."""
    look = block("print('ran')")
    replies = ["I would rather talk.", "I would rather talk.", look, look, block("SUBMIT(answer=1)")]
    played = play(RLM("question -> answer: int"), replies, question="?")
    assert [len(messages) for messages in played.calls] == [2, 4, 4, 6, 6]
    for shown, told in ((1, "turn 1"), (3, "turn 3")):
        before, after = played.calls[shown], played.calls[shown + 1]
        assert after[:-1] == before[:-1]
        assert after[-1]["content"].startswith(before[-1]["content"])
        assert f"repeated {told}, with the same outcome" in after[-1]["content"]


def test_no_message_is_empty(play: Play) -> None:
    """Providers refuse empty messages; an empty reply stands there as a word."""
    played = play(RLM("question -> answer: int", max_iters=10), TEN_TURNS, question="?")
    assert all(message["content"].strip() for message in played.calls[-1])


def test_a_conversation_is_system_environment_then_pairs(play: Play) -> None:
    """The instructions, what the run supplies, then what the model wrote and what came out."""
    rlm = RLM("question -> answer")
    played = play(rlm, [block("print(6 * 7)", "Compute."), block("SUBMIT(answer='a')")], question="?")
    system, environment, wrote, came_out = played.calls[1]
    assert system == {"role": "system", "content": rlm.act.signature.instructions}
    assert environment["role"] == "user"
    assert wrote == {"role": "assistant", "content": "Compute.\n```python\nprint(6 * 7)\n```"}
    assert came_out == {"role": "user", "content": "42"}


@pytest.mark.parametrize("adapter", [dspy.JSONAdapter(), dspy.XMLAdapter(), None])
def test_the_users_adapter_changes_no_turn_and_serves_the_extraction(play: Play, adapter: Any) -> None:
    """`act` speaks through its own; the rest of the program keeps the user's."""
    final = '{"answer": "a"}' if isinstance(adapter, dspy.JSONAdapter) else fields(answer="a")
    final = "<answer>\na\n</answer>" if isinstance(adapter, dspy.XMLAdapter) else final
    with dspy.context(adapter=adapter):
        played = play(RLM("question -> answer", max_iters=1), [block("1"), final], question="?")
        assert dspy.settings.adapter is adapter
    assert (played.prediction.answer, played.prediction.stop) == ("a", "extracted")
    assert len(played.calls[0]) == 2


ENVIRONMENT = "Task: count."
STEPS = [
    Step(reasoning="Look.", code="print(a)", output="o" * 5_000),
    Step(reasoning="", code="", output="No code."),
]


def demo(steps: int, **changes: Any) -> dspy.Example:
    """Return a demo as BootstrapFewShot makes it, after so many steps."""
    inputs = {"environment": ENVIRONMENT, "trajectory": Trajectory(steps=tuple(STEPS[:steps]))}
    return dspy.Example(augmented=True, **{**inputs, "reasoning": "R", "code": f"c{steps}", **changes})


def conversation(demos: list[Any]) -> list[dict[str, str]]:
    """Return the messages of a turn with these demos."""
    inputs = {"environment": "Task: now.", "trajectory": Trajectory()}
    messages: list[dict[str, str]] = ReplAdapter().format(signatures.Act, demos, inputs)
    return messages


def test_a_demo_is_a_short_worked_conversation() -> None:
    """Environment, pairs, then the code to learn; long outputs are cut."""
    messages = conversation([demo(2)])
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert messages[1]["content"] == ENVIRONMENT
    assert messages[2]["content"] == "Look.\n```python\nprint(a)\n```"
    assert len(messages[3]["content"]) < 700
    assert messages[3]["content"].startswith("ooo")
    assert messages[4]["content"] == "(nothing)"
    assert messages[6]["content"] == "R\n```python\nc2\n```"
    assert messages[7]["content"] == "Task: now."


def test_what_the_run_and_all_demos_say_alike_stands_once_in_the_system_message() -> None:
    """A demo looks like the run that follows it; the last paragraph, which asks for a block, stays with each."""
    functions, ask = "Functions:\n- SHOW_VARS()", "Write one ```python block per turn. You have 2 turns."
    here = Environment(task="now.\n\nAs ever.", functions="- SHOW_VARS()", turns=2)
    demos = [demo(1, environment=here.model_copy(update={"task": f"{n}.\n\nAs ever."})) for n in range(2)]
    system, *rest = ReplAdapter().format(signatures.Act, demos, {"environment": here, "trajectory": Trajectory()})
    alike = "As ever.\n\nVariables, already set:\n\nWhen you know the answer, call SUBMIT():"
    assert system["content"] == f"{signatures.Act.instructions}\n\n{alike}\n\n{functions}"
    assert rest[0]["content"] == f"Task: 0.\n\n{ask}"
    assert rest[-1]["content"] == f"Task: now.\n\n{ask}"


def test_a_run_that_says_nothing_of_its_own_keeps_its_environment() -> None:
    """No message is empty."""
    inputs = {"environment": ENVIRONMENT, "trajectory": Trajectory()}
    messages = ReplAdapter().format(signatures.Act, [demo(1)], inputs)
    assert messages[1]["content"] == messages[-1]["content"] == ENVIRONMENT


def test_of_the_demos_of_one_run_only_the_longest_is_shown() -> None:
    """A shorter one would repeat what the longer one shows."""
    first = demo(0, code="print(a)")
    assert conversation([first, demo(1)]) == conversation([demo(1)]) == conversation([demo(1), first])
    other = demo(0, environment="Task: other.")
    assert len(conversation([demo(1), other])) == len(conversation([demo(1)])) + 2


@pytest.mark.parametrize(
    "incomplete",
    [
        demo(1, code=""),
        demo(1, environment=""),
        demo(1, trajectory="steps=... <TRUNCATED FOR BREVITY>"),
    ],
)
def test_a_demo_without_what_a_conversation_needs_is_left_out(incomplete: Any) -> None:
    """Also one whose trajectory an optimizer cut to a piece of text."""
    assert conversation([incomplete]) == conversation([])


def test_a_labeled_example_is_a_line_behind_the_instructions() -> None:
    """What `LabeledFewShot` leaves: no conversation, but the right outputs for some inputs, cut short."""
    labeled = dspy.Example(context=Text("x" * 10_000), question="q" * 500, answer="a", augmented=True)
    (system, *rest), (plain, *same) = conversation([labeled]), conversation([])
    assert rest == same
    assert system["content"].startswith(
        plain["content"] + "\n\nInputs and correct outputs of other runs:\n- context: "
    )
    assert ", answer: a" in system["content"]
    assert "augmented" not in system["content"]
    assert len(system["content"]) < len(plain["content"]) + 700


@pytest.mark.parametrize(
    "labels",
    [
        {"text": "a b", "trajectory": [{"code": "print(1)"}], "answer": "a"},
        {"trajectory": "a path", "answer": "a"},
        {"environment": "production", "answer": "a"},
        {"environment": "production", "code": "a"},
        {"environment": {"python": "3.11"}, "trajectory": {"steps": []}, "code": "a"},
        {"environment": "production", "trajectory": {"thought_0": "t"}, "code": "a"},
        {"environment": "production", "trajectory": [1, 2], "reasoning": "r", "code": "a"},
    ],
)
def test_a_labeled_example_may_have_fields_with_the_names_of_a_turns(labels: dict[str, Any]) -> None:
    """A demo is one of turns only if it has the shape of one; other examples are shown by their fields."""
    labeled = dspy.Example(**labels)
    system, *rest = conversation([labeled, demo(1)])
    assert rest == conversation([demo(1)])[1:]
    assert all(f"{name}: " in system["content"].splitlines()[-1] for name in labels)
    act = Act(signatures.Act)
    act.demos = [labeled, demo(1)]
    for count in (None, 1):
        assert demos_for_run(act, Environment(text="Task: now."), count) in (None, act.demos)


def test_a_prediction_of_an_rlm_may_be_a_demo(play: Play) -> None:
    """With its trajectory, its usage and what else it tells."""
    rlm = RLM("text -> answer", policy=None)
    answer = block("SUBMIT(answer='seen')")
    rlm.act.demos = [dspy.Example(text="a b", **play(rlm, [answer], text="a b").prediction)]
    assert "text: a b, answer: seen" in play(rlm, [answer], text="c").calls[0][0]["content"]


def test_a_demo_that_was_saved_as_json_is_shown_the_same() -> None:
    """Loaded states hold plain data."""
    predictor = dspy.Predict(signatures.Act)
    predictor.demos = [demo(2)]
    state = json.loads(json.dumps(predictor.dump_state()))
    assert conversation(state["demos"]) == conversation([demo(2)])


def test_a_long_environment_of_a_demo_is_cut() -> None:
    """A demo costs little, whatever its run was about."""
    assert len(conversation([demo(0, environment="e" * 50_000)])[1]["content"]) < 1_700


@given(st.text())
def test_parsing_gives_reasoning_and_code_for_any_text(text: str) -> None:
    """No reply is a parse error, so no adapter falls back and pays a second call."""
    parsed = ReplAdapter().parse(signatures.Act, text)
    assert parsed.keys() == {"reasoning", "code"}
    assert all(isinstance(value, str) for value in parsed.values())


@given(st.text(), st.integers(min_value=0, max_value=200))
def test_clip_keeps_its_cap_and_both_ends(text: str, most: int) -> None:
    """Of a longer text so many characters are left, unless that and the note are longer than it."""
    cut = clip(text, most)
    note = f"\n... [{len(text) - most:,} characters left out] ...\n"
    if len(text) <= most + len(note):
        assert cut == text
    else:
        assert note in cut
        assert len(cut) == most + len(note)
        head, tail = cut[: most - most // 3], cut[len(cut) - most // 3 :]
        assert text.startswith(head)
        assert text.endswith(tail)


def test_a_trajectory_only_grows_into_new_ones() -> None:
    """`add` leaves the old one as it was; neither it nor its steps can be changed."""
    empty = Trajectory()
    one = empty.add(STEPS[0])
    assert (len(empty), len(one)) == (0, 1)
    with pytest.raises(ValueError, match="frozen"):
        one.steps = ()
    with pytest.raises(ValueError, match="frozen"):
        one.steps[0].output = "other"
    assert Trajectory.model_validate(json.loads(one.model_dump_json())) == one


def test_the_answer_of_a_step_stands_in_no_dump() -> None:
    """It is on the prediction; traces and saved demos do not hold it again."""
    step = Step(code="SUBMIT(1)", answer={"answer": "secret" * 10})
    assert "secret" not in step.model_dump_json() + repr(step) + str(Trajectory().add(step).model_dump())


def test_a_saved_labeled_example_is_as_long_as_it_is_shown() -> None:
    """Not the text of ten megabytes that it may hold; and it is shown the same when it was loaded."""
    predictor = Act(signatures.Act)
    predictor.demos = [dspy.Example(context="x" * 10_000_000, question="q", answer=["a", "b"])]
    state = json.dumps(predictor.dump_state())
    assert len(state) < 3_000
    assert conversation(json.loads(state)["demos"]) == conversation(predictor.demos)


class Place(BaseModel):
    """A place, and since when it is one."""

    name: str
    since: date


PICTURE = dspy.Image("data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==" + "A" * 400)


@pytest.mark.parametrize(
    "value", [Place(name="Tartu", since=date(1030, 1, 1)), {"a": (1, 2)}, PICTURE, [PICTURE], "a\nb"]
)
def test_a_labeled_example_is_shown_the_same_before_it_was_saved_and_after(value: Any) -> None:
    """A loaded program has the prompts of the one that was saved; media are named, not written out."""
    act, loaded = Act(signatures.Act), Act(signatures.Act)
    act.demos = [dspy.Example(given=value, answer="a")]
    state = json.loads(json.dumps(act.dump_state()))
    loaded.load_state(state)
    (system, *_), (again, *_) = conversation(act.demos), conversation(loaded.demos)
    assert system == again
    assert "CUSTOM-TYPE" not in system["content"]
    assert "base64" not in f"{system}{state}"
