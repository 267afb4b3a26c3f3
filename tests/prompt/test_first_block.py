"""A run without demos is shown how to begin and how to end; one with demos leaves that to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dspy

from rlm_dspy import RLM, Files, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from pathlib import Path

LONG = "It rained in Ulm.\n" * 1_000
BEGIN = "Begin with a block"
END = "If it does:\n\n```python\nSUBMIT(words=...)\n```"


def messages(rlm: RLM, *codes: str, **inputs: object) -> list[str]:
    """Return the messages of the last request of a run that runs `codes` and ends."""
    lm = ScriptedLM([*map(block, codes), block("SUBMIT(words=4)")])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        rlm(**inputs)
    return [str(message["content"]) for message in lm.script.calls[-1]]


def made() -> RLM:
    return RLM("text -> words: int", policy=None, refuse_blind_submit=False)


def test_a_run_over_a_long_text_is_shown_a_block_that_searches_it() -> None:
    assert messages(made(), text=LONG)[-1].endswith(
        f"{BEGIN} such as:\n\n```python\n"
        'for part in find_passages(text, "words of the task"):\n    print(part)\n```'
    )


def test_the_search_is_for_the_short_text_with_the_most_words() -> None:
    """A question, and not what stands before it."""
    rlm = RLM("topic, text -> words: int", policy=None, refuse_blind_submit=False)
    assert "find_passages(text, topic)" in messages(rlm, topic="rain", text=LONG)[-1]
    rlm = RLM("user_id, text, asked -> words: int", policy=None, refuse_blind_submit=False)
    told = messages(rlm, user_id="u-12", text=LONG, asked="Where did it rain?")[-1]
    assert "find_passages(text, asked)" in told


def test_a_run_over_a_folder_is_shown_the_same_block(tmp_path: Path) -> None:
    (tmp_path / "ulm.txt").write_text(LONG, encoding="utf-8")
    rlm = RLM("topic, files: Files -> words: int", policy=None, refuse_blind_submit=False)
    sent = messages(rlm, "print(find_passages(files, topic)[0])", topic="rained", files=Files.open(tmp_path))
    assert "for part in find_passages(files, topic):" in sent[1]
    assert "ulm.txt: It rained in Ulm." in sent[-1]


def test_of_other_long_inputs_a_sample_is_asked_for() -> None:
    rlm = RLM("rows: list[int] -> words: int", policy=None, refuse_blind_submit=False)
    assert messages(rlm, rows=list(range(10_000)))[-1].endswith("prints a small sample of the inputs.")


def test_short_inputs_are_in_the_message_so_no_first_block_is_shown() -> None:
    assert BEGIN not in messages(made(), text="It rained in Ulm.")[-1]


def test_a_run_of_one_turn_has_no_turn_for_a_look() -> None:
    rlm = RLM("text -> words: int", policy=None, limits=Limits(max_iters=1))
    assert BEGIN not in messages(rlm, text=LONG)[-1]


def test_each_output_is_followed_by_the_short_inputs_and_by_how_to_end() -> None:
    rlm = RLM("topic, text -> words: int", policy=None, refuse_blind_submit=False)
    *_, first, _, second = messages(rlm, "print(1)", "print(2)", topic="rain", text=LONG)
    for message in (first, second):
        assert message.endswith(END)
        assert "topic: str, 'rain'\n" in message
        assert "Ulm" not in message


def test_a_reply_without_code_is_answered_with_a_block_that_prints_passages_not_printed_yet() -> None:
    search = "for part in find_passages(text, topic):\n    print(part)"
    lm = ScriptedLM(["Send the text.", block(search), "Send the next part.", block("SUBMIT(words=4)")])
    with dspy.context(lm=lm):
        RLM("topic, text -> words: int", policy=None, refuse_blind_submit=False)(topic="rain", text=LONG)
    _, _, _, first, _, _, _, last = [str(message["content"]) for message in lm.script.calls[-1]]
    assert first.endswith(f"For example:\n\n```python\n{search}\n```")
    assert last.endswith("find_passages(text, topic, count=10)[5:]:\n    print(part)\n```")


def test_a_turn_that_repeats_another_is_answered_with_a_block_that_prints_passages() -> None:
    sent = messages(made(), "print(1)", "print(1)", text=LONG)
    assert sent[-1].endswith('find_passages(text, "words of the task"):\n    print(part)\n```')


def test_of_other_long_inputs_no_passages_are_shown_after_a_reply_without_code() -> None:
    lm = ScriptedLM(["Please send the next rows.", block("SUBMIT(words=4)")])
    with dspy.context(lm=lm):
        RLM("rows: list[int] -> words: int", policy=None, refuse_blind_submit=False)(rows=list(range(10_000)))
    assert str(lm.script.calls[-1][-1]["content"]).endswith(END)


def test_demos_show_how_a_run_begins_and_ends() -> None:
    rlm = made()
    with dspy.context(lm=ScriptedLM([block("SUBMIT(words=4)")]), trace=[]):
        rlm(text="It rained in Ulm.")
        _, inputs, turn = dspy.settings.trace[-1]
    rlm.act.demos = [dspy.Example(**inputs, **turn)]
    sent = messages(rlm, "print(1)", text=LONG)
    assert not any(BEGIN in message or END in message for message in sent)


def test_dots_in_the_place_of_an_answer_are_refused_with_the_fix() -> None:
    lm = ScriptedLM([block("SUBMIT(words=...)"), block("SUBMIT(words=4)")])
    with dspy.context(lm=lm):
        made()(text=LONG)
    assert str(lm.script.calls[-1][-1]["content"]).endswith(
        "Replace the dots in SUBMIT(...) by the answer itself."
    )
