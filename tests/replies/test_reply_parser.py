"""Reading replies: what is code, what is talk, and that nothing a model writes is an error."""

from __future__ import annotations

import ast
import gc
import json
import re
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.replies.code_blocks import does_nothing
from rlm_dspy.replies.code_repair import repaired
from rlm_dspy.replies.joined_blocks import join_blocks
from rlm_dspy.replies.reply_parser import read_reply
from rlm_dspy.replies.thinking import MAY_BE_THINKING, split_thinking
from rlm_dspy.replies.tool_calls import code_of_call

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = sorted((Path(__file__).parents[1] / "data" / "replies").glob("*.txt"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_code_of_a_reply_is_what_stands_beside_it(file: Path) -> None:
    """Each file of `data/replies` is a reply; `<name>.code` holds what is to be run of it."""
    reply = read_reply(file.read_text(encoding="utf-8"))
    assert reply.code == file.with_suffix(".code").read_text(encoding="utf-8")
    assert "draft" not in reply.code + reply.reasoning
    assert ("draft" in reply.thinking) == ("draft" in file.read_text(encoding="utf-8"))


FENCES = ["```python", "```", "```py", "```bash", "~~~", "````python", "  ```python", "```json"]
LINES = st.one_of(
    st.sampled_from(FENCES),
    st.sampled_from(
        ["x = 1", "print(x)", "x = (", '"""', "[[ ## code ## ]]", "[[ ## reasoning ## ]]", "", "word"]
    ),
    st.text(max_size=20),
)
REPLIES = st.one_of(st.text(), st.lists(LINES, max_size=12).map("\n".join))


@given(REPLIES)
@example('{"code":' + "[" * 100_000)
@example('{"code": "```python\\nx = 1\\n```"}')
@example("\0")
@example("\ud800")
@example("(" * 5_000)
@example("-" * 5_000 + "1")
@example("```python\nx = 1\rreturn SUBMIT(x)\n```")
def test_any_text_is_read_and_its_code_is_part_of_it(text: str) -> None:
    """Reading never raises, and every line of code stood in the reply."""
    reply = read_reply(text)
    if not text.lstrip().startswith("{"):
        lines = re.split("\r\n?|\n", text)
        assert set(reply.code.split("\n")) <= {*lines, *_stripped(lines), ""}
    assert not reply.code or not reply.other_language


def _stripped(lines: list[str]) -> list[str]:
    """Return the lines as reading may change them: without white space at the ends of the reply, or repaired."""
    return [form(line) for line in lines for form in (str.strip, str.lstrip, str.rstrip, repaired)]


def test_what_python_warns_of_in_a_reply_is_not_told_the_user() -> None:
    """Python 3.12 writes it to stderr, each time that code is parsed; and it never makes code prose."""
    code = "import re\nprint(re.findall('\\d+', context), 1)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_reply(code).code == code
        assert read_reply("[TOOL_CALLS][{'name': 'python', 'arguments': {'code': 'x = 1\\d'}}]").code


def test_no_reply_is_the_empty_reply() -> None:
    """None, as some providers give it, counts as empty."""
    assert read_reply(None) == read_reply("")


STRINGS = st.text(alphabet=st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=30)
TRIPLE = st.lists(
    st.sampled_from(["```", "```python", "~~~", "text", "", "[[ ## code ## ]]", "  ```"]), max_size=6
)
STATEMENTS = st.one_of(
    STRINGS.map(lambda text: f"x = {text!r}"),
    TRIPLE.map(lambda lines: 'page = """\n{}\n"""'.format("\n".join(lines))),
    TRIPLE.map(lambda lines: "# {}".format(" ".join(lines))),
    st.sampled_from(
        [
            "def f(a):\n    return a\n\n",
            "for i in range(3):\n    print(i)",
            "\n",
            "x += 1  # ```",
            "'\u2028\x0c\x1c'",
        ]
    ),
)
SOURCES = (
    st.lists(STATEMENTS, min_size=1, max_size=5).map("\n".join).filter(lambda source: not does_nothing(source))
)


@given(SOURCES, st.sampled_from(["python", "py", "repl", ""]), st.booleans())
@example('s = """\n```\n```\n"""', "python", True)  # fences inside a string
@example("x = '\u2028'", "python", True)  # str.splitlines would cut here
@example('x = """\n[[ ## code ## ]]\n"""', "python", True)  # a field mark inside a string
def test_any_source_in_a_fence_comes_back_unchanged(source: str, language: str, closed: bool) -> None:
    """Also if it holds fences, field marks or unusual line ends inside its strings."""
    ast.parse(source)
    reply = read_reply(f"Some words.\n```{language}\n{source}\n" + ("```\nMore words." if closed else "```"))
    assert reply.code == source.strip("\n")
    assert reply.reasoning.startswith("Some words.")


IN_STRINGS = ["<think>", "</analysis>", "```python", "```", "<|im_start|>", "Observation: 1", "SUBMIT(1)", "text"]
PROGRAMS = st.lists(st.sampled_from(IN_STRINGS), min_size=1, max_size=6).map(
    lambda lines: "q = r'''\n{}\n'''\nprint(q)".format("\n".join(lines))
)
WHOLE: dict[str, Callable[[str], str]] = {
    "qwen": lambda code: (
        f"<tool_call>\n<function=python>\n<parameter=code>\n{code}\n</parameter>\n</function>\n</tool_call>"
    ),
    "hermes": lambda code: (
        f"<tool_call>\n{json.dumps({'name': 'python', 'arguments': {'code': code}})}\n</tool_call>"
    ),
    "field": lambda code: f"[[ ## reasoning ## ]]\nI ask.\n\n[[ ## code ## ]]\n{code}\n\n[[ ## completed ## ]]",
    "bare": lambda code: code,
    "object": lambda code: json.dumps({"reasoning": "I ask.", "code": code}),
}


@pytest.mark.parametrize("form", WHOLE)
@given(program=PROGRAMS)
def test_nothing_is_read_into_the_strings_of_code_that_is_marked_as_a_whole(form: str, program: str) -> None:
    """Not thinking, a fence, a turn of the user, or an ending."""
    assert read_reply(WHOLE[form](program)).code == program


@pytest.mark.parametrize("form", ["qwen", "hermes"])
@given(program=PROGRAMS)
def test_a_call_that_was_drafted_in_thinking_is_not_run(form: str, program: str) -> None:
    reply = read_reply(f"<think>\nMaybe:\n{WHOLE[form](program)}\nNo.\n</think>\n```python\nprint(1)\n```")
    assert reply.code == "print(1)"
    assert "Maybe:" in reply.thinking


def joined(blocks: list[str]) -> str:
    """Return the code of joined blocks; a SUBMIT that was left out is told, if the code has no other."""
    code, told, _ = join_blocks(blocks)
    assert bool(told) == ("SUBMIT" in "".join(blocks) and "SUBMIT" not in code)
    return code


@pytest.mark.parametrize(
    "value",
    ["{1: 'x'}", "{(1, 2): 'x'}", "{'code': {1}}", "{'code': b'x'}", "{[]: 1}", "'print(1)'", "{'a': " * 200],
)
def test_a_call_written_as_python_that_json_has_no_form_for_is_no_error(value: str) -> None:
    read_reply(value)
    read_reply(f"<tool_call>{{'name': 'python', 'arguments': {value}}}</tool_call>")


def test_json_that_is_an_argument_stays_one() -> None:
    """Only for a tool that runs Python, JSON in the place of its code is read once more."""
    assert code_of_call("SUBMIT", {"answer": '{"a": 1}'}) == """SUBMIT(answer='{"a": 1}')"""
    assert code_of_call("llm_query", {"prompt": '{"code": "x"}'}) == """print(llm_query(prompt='{"code": "x"}'))"""
    assert code_of_call("python", {"raw": '{"code": "print(1)"}'}) == "print(1)"
    assert not code_of_call("python", '{"code": "print(1)')


def test_an_answer_that_was_typed_behind_code_waits_for_the_output() -> None:
    look, typed = "print(context)", "town = 'Rauma'\nSUBMIT(answer=town)"
    loop = "for part in find_passages(context, question):\n    print(part)"
    for last in ("SUBMIT(answer='Rauma')", "SUBMIT('Rauma', n=[1, 2])", typed):
        assert joined([look, last]) == look
        assert joined([loop, last]) == loop
    for last in ("SUBMIT(answer=found)", "found = context[:3]\nSUBMIT(answer=found)", "SUBMIT(answer=str(1))"):
        assert joined([look, last]) == f"{look}\n{last}"
    assert joined(["x = 1", typed]) == f"x = 1\n{typed}", "there is no output to wait for"


def test_submit_counts_in_the_last_block_alone() -> None:
    submit = "SUBMIT(answer=x)"
    assert joined([f"x = 1\n{submit}", "print(x)"]) == "x = 1\nprint(x)"
    assert joined([f"x = 1\n{submit}", submit]) == f"x = 1\n{submit}"
    assert joined([f"if found:\n    {submit}", "print(1)"]) == f"if found:\n    {submit}\nprint(1)"
    assert joined([f"x = 1; {submit}", "print(x)"]) == f"x = 1; {submit}\nprint(x)"
    assert joined(["SUBMIT(\n    answer=(\n", submit]) == submit, "a draft that does not parse"


PAIRS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ('<Thought depth="1">', "</Thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<scratchpad>", "</scratchpad>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
]
THOUGHTS = st.lists(
    st.one_of(
        LINES,
        STATEMENTS,
        st.sampled_from(["SUBMIT(answer='draft')", "```", "`", "'", '{"code": "SUBMIT(1)"}', "[[ ## code ## ]]"]),
        st.sampled_from([tag for pair in PAIRS for tag in pair]),
    ),
    max_size=12,
).map("\n".join)


@given(st.sampled_from(PAIRS), THOUGHTS, SOURCES, st.sampled_from(["\n", "", " "]), st.booleans())
def test_thinking_before_a_block_never_changes_the_code(
    tags: tuple[str, str], thought: str, source: str, between: str, opened: bool
) -> None:
    """Whatever it holds (fences, SUBMITs, tags of other kinds), and whether the model or a template opened it."""
    begin, end = tags
    thought = thought.replace(end, "").replace("<|end|>", "").replace("<|channel|>final<|message|>", "")
    if not opened:
        thought = thought.replace(begin, "").replace('"""', "")  # an open string would go on into the block
    text = f"{begin if opened else 'Hm. '}{thought}\n{end}{between}```python\n{source}\n```"
    assert read_reply(text).code == source.strip("\n")


@given(st.sampled_from(PAIRS), THOUGHTS)
def test_thinking_that_never_ends_holds_no_code(tags: tuple[str, str], thought: str) -> None:
    begin, end = tags
    thought = thought.replace(end, "").replace("<|end|>", "").replace("<|channel|>final<|message|>", "")
    reply = read_reply(f"{begin}{thought}\n```python\nSUBMIT(answer='draft')\n```")
    assert (reply.code, reply.reasoning) == ("", "")


@given(REPLIES.filter(lambda text: not MAY_BE_THINKING.search(text)))
def test_a_text_without_tags_is_left_as_it_is(text: str) -> None:
    assert split_thinking(text) == ("", text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\n2 + 2 is 4\n</think>\n\n4", "4"),
        ("2 + 2 is 4\n</think>\n\n4", "4"),
        ("so it is 4.</think>4", "4"),
        ("hm </think> 4", "4"),
        ("</think>4", "4"),
        ("<think>it never ends", ""),
        ("<think></think>", ""),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>", "4"),
        ("4<|end|>", "4"),
        ("4<|im_end|>", "4"),
        ("<|im_start|>assistant\n4<|im_end|>\n", "4"),
        ("<|im_start|>assistant\n<think>\n2 + 2 is 4\n</think>\n4<|eot_id|>", "4"),
        ("A turn ends with <|im_end|>", None),
        ("<|im_end|>", None),
        ("It is `<|im_end|>`", None),
        ("The tags `<think>` and `</think>` stand around it.", None),
        ("Between <think> and </think> nothing counts.", None),
        ("A reply has a </think> before its answer.", None),
        ("Write:\n```xml\n<think>\nhm\n</think>\n4\n```\nThat is all.", None),
        ("x = text.split('</think>')[1]", None),
        ('{"answer": "<think>no</think>"}', None),
        ("<reasoning>hm</reasoning><answer>4</answer>", None),
        ("a < b and [THINKER] > c", None),
    ],
)
def test_the_answer_of_a_sub_call_is_what_stands_behind_the_thinking(text: str, answer: str | None) -> None:
    """None: the whole text is the answer; what it says of tags, or in tags that were asked for, is kept."""
    assert split_thinking(text)[1] == (text if answer is None else answer)


def test_a_field_with_the_name_of_a_tag_is_no_thinking() -> None:
    text = "<thought>\nhm\n</thought>\n<answer>\n4\n</answer>"
    assert split_thinking(text, fields=["thought"])[1] == text
    assert split_thinking(text)[1] == "<answer>\n4\n</answer>"


@given(
    st.lists(st.one_of(LINES, st.sampled_from([tag for pair in PAIRS for tag in pair])), max_size=12).map(
        "\n".join
    )
)
@example("</THINK>\n<THINK>\n```\n◁THINK▷\n◁/THINK▷")
def test_what_is_left_of_a_reply_holds_no_more_thinking(text: str) -> None:
    rest = split_thinking(text)[1]
    assert split_thinking(rest)[1] == rest


@given(st.lists(STRINGS.map(lambda text: f"x = {text!r}"), min_size=2, max_size=5))
def test_several_blocks_are_run_as_one_in_order(sources: list[str]) -> None:
    """No block is dropped."""
    reply = read_reply("\nthen\n".join(f"```python\n{source}\n```" for source in sources))
    assert reply.code == "\n".join(sources)


@pytest.mark.parametrize(
    ("text", "reasoning", "code"),
    [
        ("Look.\n```python\nx = 1\n```\nDone.", "Look.\nDone.", "x = 1"),
        ("```Python\nx = 1\n```", "", "x = 1"),
        ("```python title=a.py\nx = 1\n```", "", "x = 1"),
        ("````python\nx = '''\n```\n'''\n````", "", "x = '''\n```\n'''"),
        ("```python\nx = (\n```\n```python\ny = 1\n```", "", "x = (\ny = 1"),
        ("```python\r\nx = 1\r\ny = 2\r\n```\r\n", "", "x = 1\ny = 2"),
        ("Words first\nx = 1\nprint(x)", "Words first", "x = 1\nprint(x)"),
        ("print('only code')", "", "print('only code')"),
        ("The answer is 42.", "The answer is 42.", ""),
        ("maybe", "maybe", ""),
        ("[[ ## reasoning ## ]]\nLook\n\n[[ ## code ## ]]\nx = 1\n\n[[ ## completed ## ]]", "Look", "x = 1"),
        ("[[ ## code ## ]]\n```python\nx = 1\n[[ ## completed ## ]]", "", "x = 1"),
        ("[[ ## code ## ]]\nx = (\n\n[[ ## completed ## ]]", "", "x = ("),
        ('{"reasoning": "R", "code": "x = 1"}', "R", "x = 1"),
        ('{"reasoning": "R", "code": "```python\\nx = 1\\n```"}', "R", "x = 1"),
        ('{"reasoning": null, "code": "x = ("}', "", "x = ("),
        ('{"answer": 42}', '{"answer": 42}', ""),
        ('{"code": 42}', '{"code": 42}', ""),
    ],
)
def test_reasoning_and_code_are_told_apart(text: str, reasoning: str, code: str) -> None:
    """Each shape that models use is read."""
    reply = read_reply(text)
    assert (reply.reasoning.replace("\n\n", "\n"), reply.code) == (reasoning, code)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("```bash\nls\n```", "bash"),
        ("```python\n```\n```sql\nselect\n```", "sql"),
        ("```python\n```", ""),
        ("hm", ""),
    ],
)
def test_the_language_of_blocks_that_are_not_python_is_named(text: str, language: str) -> None:
    """So that the model can be told; an empty Python block is no other language."""
    assert read_reply(text).other_language == language


@pytest.mark.parametrize(
    "word",
    [
        "no\n",
        "1,\n",
        "(\n```\n",
        "```\n(\n",
        "word ",
        "`",
        "<think>",
        "</think>\n",
        "a <think>b",
        "<think>a</think>\n",
        "'</think>'\n",
        "<tool_call>{",
        "<tool_call>{}",
        "\n",
    ],
)
@pytest.mark.timeout(100)
def test_a_reply_that_repeats_itself_is_read_in_seconds(word: str) -> None:
    """A model that loops until its token limit blocks nothing. A busy machine is allowed for."""
    read_reply(word * 20_000)


CALLS = {
    ("execute_sql", '{"query": "SELECT 1"}'): "print(execute_sql(query='SELECT 1'))",
    ("search_code", '{"text": "def main"}'): "print(search_code(text='def main'))",
    ("country", '{"code": "EE"}'): "print(country(code='EE'))",
    ("lookup", '{"source": "wiki", "q": "tea"}'): "print(lookup(source='wiki', q='tea'))",
    ("play", '{"description": "a walk"}'): "print(play(description='a walk'))",
    ("python", '{"input": "print(1)"}'): "print(1)",
    ("functions.runPython3", '{"code": "print(1)"}'): "print(1)",
    ("code-interpreter", '{"input": "print(1)"}'): "print(1)",
    ("execute_ipython_cell", '{"code": "print(1)", "timeout": 5}'): "print(1)",
    ("tool", '{"python_code": "print(1)"}'): "print(1)",
}


@pytest.mark.parametrize(("call", "code"), CALLS.items(), ids=[name for name, _ in CALLS])
def test_a_tool_call_is_read_as_python_only_if_its_name_or_argument_means_that(
    call: tuple[str, str], code: str
) -> None:
    assert code_of_call(*call) == code


def test_replies_are_read_and_cells_run_in_many_threads() -> None:
    """CPython 3.11 raises SystemError now and then if the collector lets another thread parse meanwhile."""

    def at_depth(depth: int) -> None:
        if depth:
            return at_depth(depth - 1)
        for number in range(150):
            assert read_reply(f"print({number})\nprint([x for x in (1, 2)])").code
            with LocalPythonInterpreter() as repl:
                assert repl.execute(f"[x for x in ({number}, 2)]\n{number}") == number
        return None

    at_depth(1)  # what is imported on first use is parsed now: pytest's import hook does not parse again
    before = sys.getswitchinterval(), gc.get_threshold()
    pause = lambda *_: time.sleep(0)  # noqa: E731  # removed below
    sys.setswitchinterval(1e-5)
    gc.set_threshold(30)
    gc.callbacks.append(pause)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(at_depth, [1, 5, 9, 20]))
    finally:
        gc.callbacks.remove(pause)
        gc.set_threshold(*before[1])
        sys.setswitchinterval(before[0])
