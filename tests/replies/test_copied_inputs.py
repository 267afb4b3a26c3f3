"""Small models type the inputs in again before their code; such a copy is left out, and nothing else is."""

from __future__ import annotations

import pytest

from rlm_dspy import Text
from rlm_dspy.inputs import describe
from rlm_dspy.replies.copied_inputs import without_copied_inputs

TEXT = (
    "The ferry to Sund left at nine, with a cow on board. " * 3 + "It rained. " * 200 + "Nobody saw the cow again."
)
QUESTION = "How many words has the text?"
VARIABLES = [describe("context", Text(TEXT)), describe("question", QUESTION), describe("limit", 5)]
SHOWN = VARIABLES[0].value

COPIES = {
    "the start": f"context = {TEXT[:150]!r}",
    "all that is shown": f"context = {SHOWN!r}",
    "both ends without the note": f'context = """\n{TEXT[:160]}\n{TEXT[-60:]}\n"""',
    "with the escapes of the first message": "context = " + repr(TEXT[:150].replace(". ", ".\\n")),
    "with a type": f"context: str = {TEXT[:150]!r}",
    "a comment behind": f"context = {TEXT[:150]!r}  # the text",
    "lines in brackets": f"context = (\n    {TEXT[:80]!r}\n    {TEXT[80:150]!r}\n)",
}
KEPT = {
    "other words": "context = 'A text of my own, which has nothing to do with what was given to me here.'",
    "a few words": "context = 'The ferry to Sund'",
    "an empty text to add to": "context = ''",
    "a slice": "context = context[:1000]",
    "a call": "context = context.lower()",
    "in a function": f"def f():\n    context = {TEXT[:150]!r}\n    return context",
    "in a condition": f"if len(context) < 3:\n    context = {TEXT[:150]!r}",
    "beside another statement": f"context = {TEXT[:150]!r}; print(1)",
    "an f-string": "context = f'The ferry to Sund left at {9}, with a cow on board. The ferry to Sund left'",
    "another name": f"text = {TEXT[:150]!r}",
    "no Python": f"context = {TEXT[:150]!r}\nprint(",
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=list(COPIES))
def test_a_copy_of_what_is_shown_of_a_long_text_is_left_out(copy: str) -> None:
    """The code around it stays as it was written."""
    code = f"# what is given\n{copy}\n\nprint(len(context))  # ü"
    assert without_copied_inputs(code, VARIABLES) == ("# what is given\n\nprint(len(context))  # ü", ["context"])


def test_lines_are_counted_as_python_counts_them() -> None:
    """A carriage return alone ends one too; a form feed does not."""
    code = f"first = 1\rsecond = '\f'\rcontext = {TEXT[:150]!r}\rprint(context)"
    assert without_copied_inputs(code, VARIABLES) == ("first = 1\nsecond = '\f'\nprint(context)", ["context"])


@pytest.mark.parametrize("code", KEPT.values(), ids=list(KEPT))
def test_any_other_code_that_binds_an_input_is_kept(code: str) -> None:
    """Also code that is no Python, whose error the model is to see."""
    assert without_copied_inputs(code, VARIABLES) == (code, [])


def test_an_input_that_is_shown_whole_is_a_copy_only_with_the_same_value() -> None:
    """A model may well ask something else."""
    assert without_copied_inputs(f"question = {QUESTION!r}\nlimit = 5", VARIABLES) == ("", ["question", "limit"])
    other = "question = 'How many words has the text then?'\nlimit = 50"
    assert without_copied_inputs(other, VARIABLES) == (other, [])


@pytest.mark.parametrize(
    "change", ["question = question.upper()", "for question in []:\n    pass", "del question"]
)
def test_an_input_that_code_has_changed_may_be_set_back(change: str) -> None:
    """In an earlier turn, and in the same one."""
    back = f"question = {QUESTION!r}"
    assert without_copied_inputs(back, VARIABLES, [change]) == (back, [])
    assert without_copied_inputs(f"{change}\n{back}", VARIABLES) == (f"{change}\n{back}", [])
