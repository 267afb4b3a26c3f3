"""Parses code that a model wrote as a tool call, in the text formats of chat templates.

A model may be trained to call a Python tool, and do so instead of writing a block: the server returns the call as
text if it does not know the tool. Sources of the formats: the chat templates and model cards of Hermes 2
Pro, Qwen2.5 and Qwen3-Coder, GLM-4.5, gpt-oss (harmony), Llama 3.1, Mistral, DeepSeek-V3, Kimi K2, Granite 3,
Command R7B, LFM2, MiniMax-M2, Claude; CodeAct and OpenHands; ReAct.
"""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue

_RUNS_CODE = re.compile(r"python|code|exec|repl|interpreter|jupyter", re.IGNORECASE)
_IS_CODE = re.compile(r"code|script|source|python|program", re.IGNORECASE)
_FLAGS = re.DOTALL | re.MULTILINE
_END = r"(?:<\|(?:call|end|return|eom_id|eot_id|im_end)\|>|\Z)"
_QWEN = re.compile(r"<parameter=(?P<key>[\w.-]+)>\n?(?P<value>.*?)\n?(?:</parameter>|\Z)", re.DOTALL)
_INVOKE = re.compile(r'<parameter name="(?P<key>[\w.-]+)"[^>]*>\n?(?P<value>.*?)\n?(?:</parameter>|\Z)', re.DOTALL)
_GLM = re.compile(
    r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>\n?(?P<value>.*?)\n?(?:</arg_value>|\Z)", re.DOTALL
)


def code_of_call(name: str, arguments: JsonValue) -> str:
    """Return the code of a tool call; empty if it has none.

    An argument with code is the code. Any other call is a call of a REPL function, whose value is printed, except
    for `SUBMIT`.

    Args:
        name: The name of the tool, also with a namespace before it: `functions.python`.
        arguments: Its arguments, as an object or its JSON text; for a code tool also the code.
    """
    name = name.rpartition(".")[2].partition(":")[0].strip()
    if isinstance(arguments, str):
        parsed = _json(arguments)
        if not isinstance(parsed, dict):
            return arguments if _RUNS_CODE.search(name) else ""
        arguments = parsed
    if not isinstance(arguments, dict):
        return ""
    texts = {key: value for key, value in arguments.items() if isinstance(value, str)}
    for key, value in texts.items():
        if _IS_CODE.search(key) or (len(arguments) == 1 and _RUNS_CODE.search(name)):
            return value
    if not name.isidentifier() or not all(key.isidentifier() for key in arguments):
        return ""
    call = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    return call if name == "SUBMIT" else f"print({call})"


def code_of_object(value: JsonValue) -> str:
    """Return the code of a JSON tool call or list of them; empty for anything else."""
    if isinstance(value, list):
        codes = [code_of_object(item) for item in value]
        return "\n".join(codes) if all(codes) else ""
    if not isinstance(value, dict):
        return ""
    if isinstance(inner := value.get("function"), dict):
        value = inner
    name = value.get("name") or value.get("tool_name") or value.get("function")
    arguments = next((value[key] for key in ("arguments", "parameters", "input", "args") if key in value), None)
    return code_of_call(name, arguments) if isinstance(name, str) else ""


def _json(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value


def _of_json(found: re.Match[str]) -> str:
    return code_of_object(_json(found["body"].strip()))


def _of_named_json(found: re.Match[str]) -> str:
    return code_of_call(found["name"], found["body"].strip())


def _of_raw_code(found: re.Match[str]) -> str:
    body = found["body"].strip("\n")
    return code_of_object(_json(body)) or body


def _of_pairs(pairs: re.Pattern[str]) -> Callable[[re.Match[str]], str]:
    def code(found: re.Match[str]) -> str:
        return code_of_call(
            found["name"], {pair["key"].strip(): pair["value"] for pair in pairs.finditer(found["body"])}
        )

    return code


def _of_python_calls(found: re.Match[str]) -> str:
    """Return the code of calls written as Python, `[python(code="...")]`."""
    try:
        tree = ast.parse(found["body"].strip(), mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        return "\n".join(
            code_of_call(
                ast.unparse(call.func), {word.arg or "": ast.literal_eval(word.value) for word in call.keywords}
            )
            for call in calls
            if isinstance(call, ast.Call)
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern, _FLAGS), read)
    for pattern, read in (
        (r"^<tool_call>\s*(?P<body>[\[{].*?[\]}])\s*(?:</tool_call>|\Z)", _of_json),
        (
            r"(?:^<tool_call>\s*)?^<function=(?P<name>[\w.-]+)>(?P<body>.*?)(?:</function>|\Z)(?:\s*</tool_call>)?",
            _of_pairs(_QWEN),
        ),
        (r"^<tool_call>(?P<name>[\w.-]+)\s*(?P<body><arg_key>.*?)(?:</tool_call>|\Z)", _of_pairs(_GLM)),
        (
            (
                r"^<(?P<tag>(?:\w+:)?(?:function_calls|tool_call))>\s*<(?:\w+:)?invoke name=\"(?P<name>[\w.-]+)\">"
                r"(?P<body>.*?)(?:</(?:\w+:)?invoke>\s*(?:</(?P=tag)>)?|\Z)"
            ),
            _of_pairs(_INVOKE),
        ),
        (
            (
                r"(?:<\|start\|>assistant)?<\|channel\|>(?:commentary|analysis) to=(?P<name>[\w.-]+)[^<]*"
                rf"(?:<\|constrain\|>\w+)?<\|message\|>(?P<body>.*?){_END}"
            ),
            _of_named_json,
        ),
        (rf"<\|python_tag\|>(?P<body>.*?){_END}", _of_raw_code),
        (r"\[TOOL_CALLS\]\s*(?P<body>\[.*\])", _of_json),
        (r"\[TOOL_CALLS\](?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\](?P<body>\{.*\})", _of_named_json),
        (
            (
                r"(?:<\uff5ctool\u2581calls\u2581begin\uff5c>)?<\uff5ctool\u2581call\u2581begin\uff5c>(?:function<\uff5ctool\u2581sep\uff5c>)?(?P<name>[\w.-]+)"
                r"(?:<\uff5ctool\u2581sep\uff5c>|\s*)(?:```json\n)?(?P<body>\{.*?\})\s*(?:```)?\s*"
                r"(?:<\uff5ctool\u2581call\u2581end\uff5c>|\Z)(?:<\uff5ctool\u2581calls\u2581end\uff5c>)?"
            ),
            _of_named_json,
        ),
        (
            (
                r"(?:<\|tool_calls_section_begin\|>)?<\|tool_call_begin\|>(?P<name>[\w.:-]+)"
                r"<\|tool_call_argument_begin\|>(?P<body>.*?)(?:<\|tool_call_end\|>|\Z)(?:<\|tool_calls_section_end\|>)?"
            ),
            _of_named_json,
        ),
        (r"<\|tool_call\|>(?P<body>[\[{].*[\]}])(?:<\|/tool_call\|>)?", _of_json),
        (r"<\|START_ACTION\|>(?P<body>.*?)(?:<\|END_ACTION\|>|\Z)", _of_json),
        (r"<\|tool_call_start\|>(?P<body>.*?)(?:<\|tool_call_end\|>|\Z)", _of_python_calls),
        (
            r"^Action:[ \t]*(?P<name>[\w.-]+)[ \t]*\nAction Input:[ \t]*\n?(?P<body>.*?)(?=^Observation:|\Z)",
            _of_named_json,
        ),
        (
            r"<(?P<tag>code|python|execute|execute_ipython|ipython|tool_code)>(?P<body>.*?)(?:</(?P=tag)>|\Z)",
            _of_raw_code,
        ),
    )
)


def split_tool_calls(text: str) -> tuple[str, str]:
    """Split a reply into the code of its tool calls, in order, and the text around them.

    Returns:
        The code and the rest; empty code and the unchanged text without a tool call.
    """
    for pattern, read in _FORMS:
        found = [(match, code) for match in pattern.finditer(text) if (code := read(match).strip("\n"))]
        if found:
            words, at = [], 0
            for match, _ in found:
                words.append(text[at : match.start()])
                at = match.end()
            return "\n".join(code for _, code in found), "".join([*words, text[at:]]).strip()
    return code_of_object(_json(text)) if text.startswith(("{", "[")) else "", text
