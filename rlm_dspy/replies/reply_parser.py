"""Splits a model's reply into Python to run, prose and thinking.

No reply is an error. A reply without code gives empty code; the loop tells the model.
"""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass, replace
from itertools import islice

from rlm_dspy.replies.code_blocks import (
    FIELD_MARK,
    PYTHON,
    CodeBlock,
    code_blocks,
    does_nothing,
    does_something,
    parse,
    with_fences_on_lines,
)
from rlm_dspy.replies.code_repair import complete_statements, repaired, without_prompts
from rlm_dspy.replies.joined_blocks import join_blocks
from rlm_dspy.replies.set_aside import CodeSetAside
from rlm_dspy.replies.thinking import split_thinking
from rlm_dspy.replies.tool_calls import code_of_object, read_json, split_tool_calls, without_default_api

_MAX_UNFENCED_LINES = 200
_BYTE_ORDER_MARK = re.compile(r"^\ufeff+", re.MULTILINE)
_JSON = json.JSONDecoder(strict=False)
_OBJECT = re.compile(r"(?:^|(?<=\}; )|(?<=\};))\{", re.MULTILINE)
_MAX_OBJECTS = 20
_HOLDS_CODE = {"json", "json5", "jsonc", "tool_call", "tool_calls", "xml", ""}
_WRAPS = {"markdown", "md", "text", "txt", "plaintext", "code", "exec", "execute", "run", "cell", "jupyter"}
_CODE_MARK = re.compile(r"^\[\[ ## code ## \]\][ \t]*$", re.MULTILINE)
_LOOSE_MARK = re.compile(
    r"^(?:\*\*)?\[\[ ?## ?(?P<field>reasoning|code|completed) ?## ?\]\](?:\*\*)?[ \t]*", re.MULTILINE
)
_TICKED = re.compile(r"^(?:\*\*)?`(?P<code>[^`\n]+)`(?:\*\*)?[ \t]*$", re.MULTILINE)
"""A line that is all code in a sentence's form."""
_ENVELOPE = re.compile(
    r"\A<(?P<tag>answer|response|solution|output)>\s*(?P<inside>.*?)\s*(?:</(?P=tag)>\s*)?\Z",
    re.DOTALL | re.IGNORECASE,
)
"""What stands around a reply of Hunyuan, Granite and Marco-o1."""
_LAST_TOKENS = re.compile(
    r"(?:\s*(?:<\|(?:im_end|eot_id|eom_id|eot|eom|end|return|endoftext|end_of_text|end_of_turn|eos|user|observation"
    r"|END_OF_TURN_TOKEN)\|>|</s>|<eos>|<sep>|<end_of_turn>|<turn\|>|\[\|endofturn\|\]|<\uff5cend\u2581of\u2581sentence\uff5c>))+\Z"
)
_FIRST_TOKENS = re.compile(
    r"\A(?:\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>|<\|assistant\|>|<\uff5cAssistant\uff5c>"
    r"|<\|im_start\|>assistant\b(?:<\|im_sep\|>)?|<start_of_turn>model\b|<\|turn>model\b"
    r"|<\|(?:start_header_id|header_start)\|>assistant<\|(?:end_header_id|header_end)\|>"
    r"|<\|start_of_role\|>assistant<\|end_of_role\|>))+\s*"
)
"""What a chat template writes before a reply; a model that was not given it writes it itself."""
_TURN_TOKEN = re.compile(
    r"<\|im_(?:start|end)\|>|<\|(?:start_header_id|header_start|eot_id|eot|user|end_of_turn)\|>"
    r"|<start_of_turn>|<end_of_turn>"
)
"""Turn markers of chat templates."""
_HEADING = re.compile(r"\A(?:[ \t]*\n|#{2,6} .*\n)+")
_SPEAKER = re.compile(r"^\s*(?:\*\*)?(?:User|Human|Observation)(?:\*\*)?:")
_INVENTED_OUTPUT = re.compile(
    r"\s*(?:\*\*)?(?:Output|Result|Stdout)s?(?:\*\*)?:"
    r"|\s*<(?:tool_(?:response|output|result)|(?:code_|execution_)?(?:output|result)|interpreter|observation)s?>",
    re.IGNORECASE,
)
_BEGINS_CALL = re.compile(r"\s*(?:[<\[{]|functools|Action|commentary|to=|[\w.-]+[ \t]*\n?\{)")
_CALL_AROUND_BLOCK = re.compile(r"^<parameter|^<tool_call|^<function|^Action Input:|<\w+>\s*$")


@dataclass(frozen=True)
class Reply:
    """A parsed reply.

    Attributes:
        reasoning: The text around the code; the whole text if there is no code.
        code: The Python of all its blocks, in order; empty if there is none, or comments alone.
        other_language: The language of a non-Python block, if the reply has nothing else.
        thinking: The thinking in the reply, if any.
        notice: What the model is told of its reply: that it was truncated, or what was left out; else empty.
        left_out: A last block that is not run before the model saw the output of the others; else empty.
    """

    reasoning: str
    code: str
    other_language: str = ""
    thinking: str = ""
    notice: str = ""
    left_out: str = ""


def read_reply(text: str | None, *, cut: bool = False) -> Reply:
    """Parse a reply of any shape.

    Code, outside thinking (see `split_thinking`), is: fenced blocks marked as Python or `repl` (several are
    joined); without those, unmarked blocks, except those that a line calls an output; an unclosed block; a JSON
    object with a `code` field; without any fence, the content of DSPy's field `code`, else the longest end of the
    reply that parses as Python and does something. Tool calls count as blocks; `join_blocks` joins several.

    Args:
        text: The model's reply; None counts as empty.
        cut: Whether the reply is truncated. Only closed blocks are code then, and of a last block marked as Python
            its complete statements.
    """
    text = without_first_tokens(_BYTE_ORDER_MARK.sub("", (text or "").replace("\r\n", "\n"))).strip()
    text = _with_marks_on_lines(text)
    if as_object := _read_object(text):
        return replace(as_object, code=without_default_api(repaired(as_object.code)))
    aside = CodeSetAside("" if cut else text)
    thinking, text = split_thinking(text if cut else aside.text, in_turn=True)
    thinking, text = aside.original(thinking), aside.blocks(_LAST_TOKENS.sub("", text).strip())
    reply = _read(text, aside, cut=cut)
    code = without_default_api(repaired(reply.code))
    if code and does_nothing(code):
        return Reply(reasoning=aside.original(text), code="", thinking=thinking)
    return replace(reply, code=code, thinking=thinking)


def without_first_tokens(text: str) -> str:
    """Return a reply without the tokens of a chat template that begin it."""
    return _FIRST_TOKENS.sub("", text)


def _with_marks_on_lines(text: str) -> str:
    """Return a reply that begins with a mark of DSPy's fields, with each mark on a line of its own."""
    is_written_so = not _LOOSE_MARK.match(text) or _CODE_MARK.search(text)
    return text if is_written_so else _LOOSE_MARK.sub(r"[[ ## \g<field> ## ]]\n", text)


def _read(text: str, aside: CodeSetAside, *, cut: bool) -> Reply:
    if as_object := _read_object(text):
        return as_object
    lines = with_fences_on_lines(text.split("\n"))  # splitlines would also cut strings at a form feed or U+2028
    lines = _until_invented_output(_until_invented_turn(lines))
    blocks = list(code_blocks(lines))
    code, words = ("", "") if cut else split_tool_calls(_text_of_calls(lines, blocks))
    if code:
        return Reply(reasoning=_without_marks(words), code=_unfenced(code))
    return _read_blocks(lines, aside, cut=cut)


def _read_blocks(lines: list[str], aside: CodeSetAside, *, cut: bool) -> Reply:
    """Parse a reply or the content of a tool call by its fences."""
    blocks, text = list(code_blocks(lines)), "\n".join(lines)
    filled = [block for block in (_received(blocks, len(lines)) if cut else blocks) if block.code.strip()]
    code = [block.code for block in filled if block.language in PYTHON]
    if not any(block.language in PYTHON and block.code.strip() for block in blocks):
        unmarked = [block for block in filled if not block.language]
        code = [
            inner.code if (inner := _read_object(block.code)) else block.code
            for block in unmarked
            if block is unmarked[0] or not block.is_output
        ]
    if code:
        words = _without_marks("\n".join(_lines_outside(lines, blocks)))
        joined = join_blocks(repaired(aside.code(block)) for block in code)
        return Reply(words, **joined._asdict())
    for block in filled:
        if (inner := _read_object(block.code) if block.language in _HOLDS_CODE else None) and inner.code:
            return inner
        if block.language in _WRAPS and (inner := _read_blocks(block.code.split("\n"), aside, cut=cut)).code:
            return inner
    if not filled and not cut and (unfenced := _read_unfenced("\n".join(_lines_outside(lines, blocks)))).code:
        return unfenced
    if blocks or cut:
        others = (block.language for block in blocks if block.language and block.language not in PYTHON)
        return Reply(reasoning=_without_marks(text), code="", other_language=next(others, ""))
    return Reply(reasoning=_without_marks(text), code="")


def _until_invented_output(lines: list[str]) -> list[str]:
    """Remove the blocks that the model wrote after an output that it made up: it is to see the real one."""
    blocks = list(code_blocks(lines))
    code = [block for block in blocks if block.language in PYTHON and block.code.strip()]
    inside = {at for block in blocks for at in range(block.start, block.end + 1)}
    for at in range(code[0].end + 1, code[-1].start) if code else ():
        if at not in inside and _INVENTED_OUTPUT.match(lines[at]):
            return lines[:at]
    return lines


def _received(blocks: list[CodeBlock], end: int) -> list[CodeBlock]:
    """Return the blocks of a truncated reply as far as they are complete."""
    closed = [block for block in blocks if block.end < end]
    cut = [block for block in blocks if block.end >= end and block.language in PYTHON]
    return closed + [block._replace(code=complete_statements(block.code)) for block in cut]


def _until_invented_turn(lines: list[str]) -> list[str]:
    """Remove next turns that the model wrote in the user's name."""
    blocks = list(code_blocks(lines))
    inside = {at for block in blocks for at in range(block.start, block.end + 1)}
    first = next((block.end for block in blocks if block.code.strip()), len(lines))
    for at, line in enumerate(lines):
        if at not in inside and begins_invented_turn(line, behind_code=at > first):
            return [*lines[:at], _TURN_TOKEN.split(line)[0]] if _TURN_TOKEN.search(line) else lines[:at]
    return lines


def begins_invented_turn(line: str, *, behind_code: bool) -> bool:
    """Whether a line outside of blocks begins a turn that the model wrote in the user's name."""
    return bool(_TURN_TOKEN.search(line) or (behind_code and _SPEAKER.match(line)))


def _text_of_calls(lines: list[str], blocks: list[CodeBlock]) -> str:
    """Return the text to search for tool calls; empty with a Python block that is not a call itself."""
    shown = [
        block
        for block in blocks
        if block.language in PYTHON and (not _BEGINS_CALL.match(block.code) or parse(block.code) is not None)
    ]
    return "" if shown and not _CALL_AROUND_BLOCK.search(lines[shown[0].start - 1]) else "\n".join(lines)


def _read_object(text: str) -> Reply | None:
    if not text.startswith("{"):
        return None
    value = read_json(text)
    code = value.get("code") if isinstance(value, dict) else None
    if isinstance(value, dict) and isinstance(code, str):
        return Reply(reasoning=str(value.get("reasoning") or ""), code=_unfenced(code))
    called = code_of_object(value)
    return Reply(reasoning="", code=called) if called else None


def _read_objects_among_words(text: str) -> Reply | None:
    """Read the JSON objects that begin a line, or stand behind another one, and hold code."""
    codes, words, at = list[str](), list[str](), 0
    for found in islice(_OBJECT.finditer(text), _MAX_OBJECTS):
        try:
            _, end = _JSON.raw_decode(text, found.start()) if found.start() >= at else (None, 0)
        except (ValueError, RecursionError):
            continue
        inner = _read_object(text[found.start() : end])
        if inner and (tree := parse(inner.code)) is not None and does_something(tree):
            words += [text[at : found.start()].strip("; \n"), inner.reasoning]
            codes.append(inner.code)
            at = end
    words.append(text[at:].strip())
    return Reply("\n".join(filter(None, words)), **join_blocks(codes)._asdict()) if codes else None


def _unfenced(code: str) -> str:
    """Return the code in a field or a tool call, without fences."""
    return (
        code
        if parse(code) is not None
        else _read_blocks(code.split("\n"), CodeSetAside(""), cut=False).code or code
    )


def _lines_outside(lines: list[str], blocks: list[CodeBlock]) -> list[str]:
    inside = {at for block in blocks for at in range(block.start, block.end + 1)}
    return [line for at, line in enumerate(lines) if at not in inside]


def _without_marks(text: str) -> str:
    return FIELD_MARK.sub("", text).strip()


def _read_unfenced(text: str) -> Reply:
    if mark := _CODE_MARK.search(text):
        code = FIELD_MARK.split(text[mark.end() :], maxsplit=1)[0]
        return Reply(reasoning=_without_marks(text[: mark.start()]), code=code.strip("\n").rstrip())
    if typed := without_prompts(text):
        return Reply(reasoning="", code=typed)
    words = _without_marks(text)
    inside = _ENVELOPE.sub(r"\g<inside>", words)
    for form in dict.fromkeys((words, inside, _TICKED.sub(r"\g<code>", words), _with_plain_end(words))):
        if reply := _read_code_at_end(form.split("\n")):
            return reply
    return _read_objects_among_words(words) or Reply(reasoning=words, code="")


def _read_code_at_end(lines: list[str]) -> Reply | None:
    for start in range(min(len(lines), _MAX_UNFENCED_LINES)):
        code = "\n".join(lines[start:])
        tree = parse(code)
        if tree is not None and does_something(tree):
            return Reply(reasoning="\n".join(lines[:start]).strip(), code=repaired(_HEADING.sub("", code)))
        if tree is not None:
            break  # no later line does more; a repetitive reply would be parsed 200 times
    return None


def _with_plain_end(text: str) -> str:
    """Return a text whose end is indented, as code may be in Markdown, without that indentation."""
    lines = text.split("\n")
    first = next((at for at, line in enumerate(lines) if line[:1] in {" ", "\t"}), 0)
    if not first or lines[first - 1] or any(line[:1].strip() for line in lines[first:]):
        return text
    return "\n".join([*lines[:first], textwrap.dedent("\n".join(lines[first:]))])
