"""Replies put together of thinking, words, a wrapper of code and what stands behind it: the code comes out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlm_dspy.replies.reply_parser import read_reply

if TYPE_CHECKING:
    from collections.abc import Callable

CODES = st.sampled_from(
    [
        "print(len(context))",
        "parts = context.split('\\n')\nprint(len(parts))",
        "for line in context.splitlines():\n    if 'late' in line:\n        print(line)",
        "answer = llm_query(f'Who? {context[:1000]}')\nSUBMIT(answer=answer)",
        "import re\nprint(re.findall(r'\\d+', context)[:5])",
        "text = '''\n```python\nno code\n```\n'''\nprint(text)",
        "print('<tool_call>', '<think>', '```')",
        "value = await helper(1)\nprint(value)",
    ]
)
WORDS = [
    "",
    "I look at it.",
    "First the lines, then the count:",
    "I'll print `context` first, it's long.",
    "1. Look.",
]
THINKING = st.sampled_from(
    [
        "",
        "<think>\nA draft:\n```python\nprint('draft')\n```\n</think>\n",
        "<|channel|>analysis<|message|>Should I draft?<|end|><|start|>assistant<|channel|>final<|message|>",
        "Hm, a draft.</think>\n",
        "[THINK]draft[/THINK]",
    ]
)
ENDS = st.sampled_from(["", "\n", "<|im_end|>", "<|eot_id|>", "\n\n<|im_end|>\n<|im_start|>user\nOutput: 3"])


def _json(name: str) -> Callable[[str], str]:
    return lambda code: json.dumps({"name": name, "arguments": {"code": code}})


def _in_lines(before: str, behind: str) -> Callable[[str], str]:
    return lambda code: f"{before}\n{code}\n{behind}"


WRAPPERS: dict[str, Callable[[str], str]] = {
    "fence": _in_lines("```python", "```"),
    "fence without a mark": _in_lines("```", "```"),
    "fence of tildes": _in_lines("~~~python", "~~~"),
    "fence with a token behind": _in_lines("```py", "```<end_code>"),
    "tool call of Hermes": lambda code: f"<tool_call>\n{_json('python')(code)}\n</tool_call>",
    "tool call of Qwen": _in_lines(
        "<tool_call>\n<function=run>\n<parameter=code>", "</parameter>\n</function>\n</tool_call>"
    ),
    "tool call of Mistral": lambda code: f"[TOOL_CALLS][{_json('python')(code)}]",
    "tool call of Granite": lambda code: f"<|tool_call|>[{_json('python')(code)}]",
    "tool call of gpt-oss": lambda code: f"<|channel|>commentary to=python code<|message|>{code}<|call|>",
}


@settings(max_examples=150)
@given(THINKING, st.sampled_from(WORDS), st.sampled_from(sorted(WRAPPERS)), CODES, ENDS)
@example("", "", "tool call of Qwen", "print('<tool_call>', '<think>', '```')", "")
def test_the_code_comes_out_of_any_mixture(thinking: str, words: str, wrapper: str, code: str, end: str) -> None:
    reply = read_reply(f"{thinking}{words}\n{WRAPPERS[wrapper](code)}{end}")
    assert reply.code == code
    assert "draft" not in reply.code + reply.reasoning
    assert words in reply.reasoning


@given(st.sampled_from(sorted(WRAPPERS)), CODES)
def test_a_tool_call_shown_in_a_fence_of_python_is_no_tool_call(wrapper: str, code: str) -> None:
    shown = f"text = {WRAPPERS[wrapper](code)!r}\nprint(text)"
    assert read_reply(f"I print it.\n```python\n{shown}\n```").code == shown
