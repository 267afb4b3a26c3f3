"""What a reply's reader says while it is written is what the whole reply is read as, in the same order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy.replies.reply_parser import read_reply
from rlm_dspy.streaming.reply_reader import ReplyReader

REPLIES = Path(__file__).parent.parent / "data" / "replies"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(REPLIES.rglob("*.txt"))}


def said(parts: list[str], field: str) -> str:
    """Return what is said for a field when a reply comes in these parts."""
    reader = ReplyReader()
    return "".join(piece.text for part in parts for piece in reader.read(part) if piece.field == field)


def cut(text: str, size: int) -> list[str]:
    """Return the text in parts of a size."""
    return [text[at : at + size] for at in range(0, len(text), size)]


PLAIN = """I look first.
```python
print(context[:100])

for line in context.splitlines():
    print(f"`{line}`")
```
Then I go on."""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_code_and_reasoning_come_without_fences_whatever_the_parts(size: int) -> None:
    parts = cut(PLAIN + "\n", size)
    assert said(parts, "code") == read_reply(PLAIN).code
    assert said(parts, "reasoning") == "I look first.\nThen I go on.\n"


def test_code_comes_while_its_line_is_written() -> None:
    reader = ReplyReader()
    reader.read("Look.\n```python\n")
    assert [piece.text for part in ["pri", "nt(", "1)"] for piece in reader.read(part)] == ["pri", "nt(", "1)"]


@pytest.mark.parametrize("size", [1, 5, 1_000])
@pytest.mark.parametrize(
    "text",
    [
        "<think>\nI draft:\n```python\nSUBMIT(answer='draft')\n```\n</think>\n```python\nSUBMIT(answer=1)\n```\n",
        "<think>short</think>\n```python\nx = 1\n```\n",
        "Here: ```python\nx = 1\n```\n",
        "<|im_start|>assistant\n\nI look.\n```python\nx = 1\n```\n",
        "```python\nx = 1\n\u200b```\n",
        "<s> ```python\nx = 1\n```</s>\n",
        "```python\nx = '''\n```\n'''\nprint(x)\n```\n",
        "```py\na = 1\n```\nand\n```python\nb = a\n```\n",
        "```python\n\n\nx = 1\n\n\n```\n",
        "```text\nno code\n```\n```python\nx = 1\n```\n",
        "~~~python\nx = '```'\n~~~\n",
        "```python\nx = 1\n```\nUser: (output)\n```python\nSUBMIT(answer='made up')\n```\n",
    ],
)
def test_what_is_said_as_code_is_what_runs(text: str, size: int) -> None:
    assert said(cut(text, size), "code") == read_reply(text).code


def test_thinking_is_told_apart() -> None:
    text = "<think>\nWhich words?\n```python\ndraft()\n```\n</think>\nI count.\n```python\nx = 1\n```\n"
    assert said(cut(text, 4), "thinking") == "Which words?\n```python\ndraft()\n```\n"
    assert said(cut(text, 4), "reasoning") == "I count.\n"


def test_a_draft_before_a_closing_tag_ends_the_code() -> None:
    """The template of the model wrote the opening tag: what follows is delivered with the whole reply."""
    text = "```python\ndraft()\n```\n</think>\n```python\nx = 1\n```\n"
    assert said(cut(text, 3), "code") == "draft()"


@pytest.mark.parametrize(
    "text", ['{"reasoning": "r", "code": "x = 1"}', "```\nx = 1\n```\n", "<tool_call>\n{}\n</tool_call>\n"]
)
def test_what_is_not_certain_before_the_end_is_not_said_as_code(text: str) -> None:
    assert said(cut(text, 2), "code") == ""


@pytest.mark.parametrize("name", TEXTS)
def test_the_parts_of_a_reply_make_no_difference(name: str) -> None:
    text = TEXTS[name] + "\n"
    for field in ("code", "reasoning", "thinking"):
        assert said(cut(text, 1), field) == said(cut(text, 6), field) == said([text], field)


@given(
    st.lists(
        st.sampled_from(["```python\n", "```\n", "x = 1\n", "`a` b", "\n", "<think>", "</think>", "User:", " "])
    )
)
def test_any_mixture_reads_the_same_in_any_parts(parts: list[str]) -> None:
    text = "".join(parts)
    for field in ("code", "reasoning", "thinking"):
        assert said(cut(text + "\n", 1), field) == said([*parts, "\n"], field)
