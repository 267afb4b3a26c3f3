"""Parses code that a model wrote as a tool call, in the text formats of chat templates.

A model may be trained to call a Python tool, and do so instead of writing a block: the server returns the call as
text if it does not know the tool. Sources of the formats: the chat templates and model cards of Hermes 2 Pro,
Qwen2.5 and Qwen3-Coder, GLM-4.5, gpt-oss (harmony), Llama 3.1 and 4, Mistral, DeepSeek-V3, Kimi K2, Granite 3,
Command R7B, LFM2, MiniMax-M2, Claude, Phi-4, Nemotron, Jamba, InternLM2.5, OLMo 3, Hunyuan, FunctionGemma; CodeAct
and OpenHands; ReAct, and the JSON form of it that LangChain asks for; what Groq quotes as `failed_generation`.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from typing import TYPE_CHECKING

from rlm_dspy.replies.code_blocks import does_something, parse, tree_of
from rlm_dspy.replies.literals import NO_LITERAL, literal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue

_WORD = re.compile(r"[a-z]+")
_PYTHON = {"python", "ipython", "code", "exec", "execute", "repl", "interpreter", "jupyter"}
_BESIDE = {"run", "eval", "evaluate", "cell", "tool", "script", "program", "notebook", "stateful", "in", "the"}
"""Other words in names of tools that run Python: `execute_sql` and `search_code` do not."""
_IS_CODE = {"code", "script", "source", "python", "program"}
_NAMES = ("name", "tool_name", "function", "tool", "action")
_ARGUMENTS = ("arguments", "parameters", "input", "args", "tool_input", "action_input")
_BACKSLASH = re.compile(r"\\(?P<escape>[\"\\/nrt]|u[0-9a-fA-F]{4})?")
_CDATA = re.compile(r"\A\s*<!\[CDATA\[(?P<body>.*)\]\]>\s*\Z", re.DOTALL)
_CODE_IN_JSON = re.compile(r'\s*\{+\s*"\w*(?:code|script|source|python|program)\w*"\s*:', re.IGNORECASE)
_ONE_STRING = re.compile(r'\s*\{\s*"\w+"\s*:\s*"(?P<value>.*)"\s*\}\s*', re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}
_BARE_CALLS = re.compile(r"\[[\w.]*(?:python|code|exec|repl|interpreter)\w*\(\w+=", re.IGNORECASE)
_DEFAULT_API = "default_api."
_PRINTED = re.compile(r"\Aprint\((?P<call>default_api.*)\)\Z", re.DOTALL)
_FLAGS = re.DOTALL | re.MULTILINE
_END = r"(?:<\|(?:call|end|return|eom_id|eot_id|im_end)\|>|\Z)"
_NS = r"(?:\w+:|\uff5cDSML\uff5c)?"
"""A namespace before a tag: MiniMax's, Seed's, StepFun's, DeepSeek's."""
_BAR, _GAP = r"[\uff5c|]", r"(?:\u2581|\\?_| )"
"""The characters of DeepSeek's tokens, also as its models write them themselves: llama.cpp reads these forms."""
_QWEN = re.compile(r"<parameter=(?P<key>[\w.-]+)>\n?(?P<value>.*?)\n?(?:</parameter>|\Z)", re.DOTALL)
_INVOKE = re.compile(
    rf'<{_NS}parameter name="(?P<key>[\w.-]+)"[^>]*>\n?(?P<value>.*?)\n?(?:</{_NS}parameter>|\Z)', re.DOTALL
)
_GEMMA = re.compile(r'(?P<key>\w+):(?P<quote><escape>|<\|"\|>)(?P<value>.*?)(?:(?P=quote)|\Z)', re.DOTALL)
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
        parsed = read_json(arguments)
        if not isinstance(parsed, dict):
            return _code_alone(arguments) if _runs_python(name) else ""
        arguments = parsed
    if not isinstance(arguments, dict):
        return ""
    texts = {key: value for key, value in arguments.items() if isinstance(value, str)}
    unread = next(filter(_CODE_IN_JSON.match, texts.values()), "")
    if unread and len(arguments) == 1 and _runs_python(name):
        return code_of_call(name, unread)  # a client that could not read it hands it over as one argument
    for key, value in texts.items():
        of_code = bool(_words(key) & _IS_CODE)
        if (of_code or len(arguments) == 1) if _runs_python(name) else of_code and _acts(value):
            return value
    if not name.isidentifier() or not all(key.isidentifier() for key in arguments):
        return ""
    call = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    return call if name == "SUBMIT" else f"print({call})"


def _code_alone(text: str) -> str:
    """Return the code of arguments that are not an object: plain code, or a field whose quotes are not escaped."""
    if not _CODE_IN_JSON.match(text):
        return text
    found = _ONE_STRING.fullmatch(text)
    value = found["value"] if found else ""
    code = _BACKSLASH.sub(lambda each: _ESCAPES.get(each["escape"] or "", each[0]), value)
    return code if _acts(code) else ""


def _runs_python(name: str) -> bool:
    """Whether the name of a tool says that it runs Python."""
    words = _words(name)
    return bool(words & _PYTHON) and words <= _PYTHON | _BESIDE


def _words(name: str) -> set[str]:
    """Return the words of a name like `runPython3` or `run_python`, in lower case."""
    return set(_WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def _acts(text: str) -> bool:
    """Whether a text is Python that does something: the name of a country is an expression too."""
    return (tree := parse(text)) is not None and does_something(tree)


def code_of_object(value: JsonValue) -> str:
    """Return the code of a JSON tool call or list of them; empty for anything else."""
    if isinstance(value, list):
        codes = [code_of_object(item) for item in value]
        return "\n".join(codes) if all(codes) else ""
    if not isinstance(value, dict):
        return ""
    if isinstance(calls := value.get("tool_calls"), list):
        return code_of_object(calls)
    if isinstance(inner := value.get("function") or value.get("function_call"), dict):
        value = {**value, **inner}
    name = next((value[key] for key in _NAMES if value.get(key)), None)
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    return code_of_call(name, arguments) if isinstance(name, str) else ""


def read_json(text: str) -> JsonValue:
    """Return the JSON value that a model wrote, None if it is none.

    Strings may hold line breaks, and backslashes as in a regular expression; the last brace may be missing. It may
    be written as Python, with single quotes or a comma at its end.
    """
    escaped = _BACKSLASH.sub(lambda found: found[0] if found["escape"] else r"\\", text)
    for written in (text, escaped, escaped + "}"):
        try:
            value: JsonValue = json.loads(written, strict=False)
        except (ValueError, RecursionError):
            continue
        return value
    with contextlib.suppress(*NO_LITERAL):
        value = json.loads(json.dumps(literal_of(text)))
        return value if isinstance(value, dict | list) else None
    return None


def _of_json(found: re.Match[str]) -> str:
    return code_of_object(read_json(found["body"].strip()))


def _of_named_json(found: re.Match[str]) -> str:
    return code_of_call(found["name"], found["body"].strip())


def _of_raw_code(found: re.Match[str]) -> str:
    body = _CDATA.sub(r"\g<body>", found["body"]).strip("\n")
    return code_of_object(read_json(body)) or _of_calls(body) or body


def _of_function(found: re.Match[str]) -> str:
    """Return the code of `<function=name>`: with an object behind it (Llama), or parameters in tags (Qwen)."""
    body = found["body"].strip()
    return code_of_call(found["name"], body) if body.startswith("{") else _of_pairs(_QWEN)(found)


def _of_pairs(pairs: re.Pattern[str]) -> Callable[[re.Match[str]], str]:
    def code(found: re.Match[str]) -> str:
        return code_of_call(
            found["name"], {pair["key"].strip(): pair["value"] for pair in pairs.finditer(found["body"])}
        )

    return code


def _of_python_calls(found: re.Match[str]) -> str:
    return _of_calls(found["body"])


def _of_calls(text: str) -> str:
    """Return the code of tool calls written as Python, `[python(code="...")]`; empty for other Python."""
    try:
        lines = tree_of(text.strip()).body
        values = [line.value for line in lines if isinstance(line, ast.Expr)]
        calls = [call for value in values for call in (value.elts if isinstance(value, ast.List) else [value])]
        if len(values) < len(lines) or not all(isinstance(call, ast.Call) and not call.args for call in calls):
            return ""
        return "\n".join(
            code_of_call(
                ast.unparse(call.func), {word.arg or "": ast.literal_eval(word.value) for word in call.keywords}
            )
            for call in calls
            if isinstance(call, ast.Call) and call.keywords
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


def without_default_api(code: str) -> str:
    """Return code with the REPL's functions in the place of `default_api`, which Gemini takes its tools for.

    The code of `print(default_api.python(code="..."))` is its argument.
    """
    if _DEFAULT_API not in code or (tree := parse(code)) is None:
        return code
    called = _PRINTED.sub(r"\g<call>", code.strip())
    if called.startswith(_DEFAULT_API) and (of_calls := _of_calls(called)):
        return of_calls
    lines = [line.encode() for line in code.split("\n")]
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and f"{node.id}." == _DEFAULT_API)
    for at, start in sorted(((name.lineno - 1, name.col_offset) for name in names), reverse=True):
        lines[at] = lines[at][:start] + lines[at][start:].removeprefix(_DEFAULT_API.encode())
    return b"\n".join(lines).decode()


def is_bare_call(text: str) -> bool:
    """Whether a text begins like a tool call that is written as Python: `[python(code="...")]`."""
    return _BARE_CALLS.match(text) is not None


_OPENS = (
    r"(?:<\|?(?:tool_calls?|tools|function_calls?|TOOLCALL)\|?>|\[TOOL_(?:CALLS|REQUEST)\]|\bfunctools(?=\[)"
    r"|<\|action_start\|>\s*<\|plugin\|>|<\|START_ACTION\|>)"
)
_CLOSES = r"(?:</(?:tool_calls?|tools|function_calls?|TOOLCALL|s)>|<\|[\w/]+\|>|\[END_TOOL_REQUEST\]|\Z)"
_TAGS = (
    "code(?:_block|_interpreter)?|execute|(?:execute|run)_(?:i?python|code)|i?python|(?:python|repl)_code|PYTHON"
    "|repl|tool_code"
)
FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern, _FLAGS), read)
    for pattern, read in (
        (rf"{_OPENS}\s*(?P<body>[\[{{](?:(?!{_OPENS}\s*[\[{{]).)*?[\]}}])\s*{_CLOSES}", _of_json),
        (
            (
                r"(?:<(?:seed:)?tool_call>\s*|^)<function=(?P<name>[\w.-]+)(?:>|=?(?=\{)|\((?=\{))"
                r"(?P<body>.*?)\)?(?:</function>|\Z)(?:\s*</(?:seed:)?tool_call>)?"
            ),
            _of_function,
        ),
        (
            (
                r"(?:<tool_calls>\s*)?<tool_call>(?P<name>[\w.-]+)\s*(?:<tool_sep>\s*)?(?P<body><arg_key>.*?)"
                r"(?:</tool_call>\s*(?:</tool_calls>)?|\Z)"
            ),
            _of_pairs(_GLM),
        ),
        (
            (
                rf"(?:<{_NS}(?:function_calls|tool_calls?)>\s*)?<{_NS}invoke name=\"(?P<name>[\w.-]+)\">"
                rf"(?P<body>.*?)(?:</{_NS}invoke>\s*(?:</{_NS}(?:function_calls|tool_calls?)>)?|\Z)"
            ),
            _of_pairs(_INVOKE),
        ),
        (r"<function_calls>\s*(?P<body>.*?)(?:</function_calls>|\Z)", _of_python_calls),
        (
            (
                r"(?:<\|start\|>assistant)?<\|channel\|>(?:commentary|analysis) to=(?P<name>[\w.-]+)[^<]*"
                rf"(?:<\|constrain\|>\w+)?<\|message\|>(?P<body>.*?){_END}"
            ),
            _of_named_json,
        ),
        (
            (
                r"(?:(?:<\|start\|>)?assistant )?\bto=(?P<name>[\w.-]+)\s*<\|channel\|>\w+[^<]*"
                rf"(?:<\|constrain\|>\w+)?<\|message\|>(?P<body>.*?){_END}"
            ),
            _of_named_json,
        ),
        (r"\A(?:commentary|analysis) to=(?P<name>[\w.-]+) ?(?:code|json)?(?P<body>.*)\Z", _of_named_json),
        (rf"<\|python_tag\|>(?P<body>.*?){_END}", _of_raw_code),
        (r"<\|python_start\|>(?P<body>.*?)(?:<\|python_end\|>|\Z)(?:<\|eom\|>)?", _of_raw_code),
        (r"<\|action_start\|>\s*<\|interpreter\|>(?P<body>.*?)(?:<\|action_end\|>|\Z)", _of_raw_code),
        (r"\[TOOL_CALLS\]\s*(?P<body>\[.*\])", _of_json),
        (
            (
                r"\[TOOL_CALLS\](?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?"
                r"(?P<body>\{(?:(?!\[TOOL_CALLS\]\w).)*\})"
            ),
            _of_named_json,
        ),
        (
            (
                r"(?:<\|tool_call>|<start_function_call>)\s*call:(?P<name>[\w.-]+)\{(?P<body>.*?)\}?"
                r"(?:<tool_call\|>|<end_function_call>|\Z)"
            ),
            _of_pairs(_GEMMA),
        ),
        (
            (
                rf"(?:<{_BAR}tool{_GAP}calls{_GAP}begin{_BAR}>\s*)?<{_BAR}tool{_GAP}call{_GAP}begin{_BAR}>"
                rf"(?:function<{_BAR}tool{_GAP}sep{_BAR}>)?(?P<name>[\w.-]+)"
                rf"(?:<{_BAR}tool{_GAP}sep{_BAR}>|\s*)(?:```json\n)?(?P<body>\{{.*?\}})\s*(?:```)?\s*"
                rf"(?:<{_BAR}tool{_GAP}call{_GAP}end{_BAR}>|\Z)(?:\s*<{_BAR}tool{_GAP}calls{_GAP}end{_BAR}>)?"
            ),
            _of_named_json,
        ),
        (
            (
                r"(?:<\|tool_calls_section_begin\|>\s*)?<\|tool_call_begin\|>\s*(?P<name>[\w.:-]+)\s*"
                r"<\|tool_call_argument_begin\|>(?P<body>.*?)(?:<\|tool_call_end\|>|\Z)(?:\s*<\|tool_calls_section_end\|>)?"
            ),
            _of_named_json,
        ),
        (r"<\|tool_call_start\|>(?P<body>.*?)(?:<\|tool_call_end\|>|\Z)", _of_python_calls),
        (r"^Action:\s*```json\s*(?P<body>\[.*?\])\s*```", _of_json),
        (r"^(?P<name>[\w.-]+)(?P<body>\{.*\})</function>", _of_named_json),
        (r"\A(?P<name>[\w.-]+)\n(?P<body>\{.*\})\s*\Z", _of_named_json),
        (
            r"^Action:[ \t]*(?P<name>[\w.-]+)[ \t]*\nAction Input:[ \t]*\n?(?P<body>.*?)(?=^Observation:|\Z)",
            _of_named_json,
        ),
        (
            (
                rf"(?:^[ \t]*|(?<=[.:!?] ))(?P<open>[<\[])(?P<tag>{_TAGS})"
                r"(?: [^<>\n]*)?[>\]](?P<body>.*?)(?:(?P=open)/(?P=tag)[>\]][ \t]*$|\Z)"
            ),
            _of_raw_code,
        ),
    )
)


def split_tool_calls(text: str) -> tuple[str, str]:
    """Split a reply into the code of its tool calls, in order, and the text around them.

    Returns:
        The code and the rest; empty code and the unchanged text without a tool call.
    """
    for pattern, read in FORMS:
        found = [(match, code) for match in pattern.finditer(text) if (code := read(match).strip("\n"))]
        if found:
            words, at = [], 0
            for match, _ in found:
                words.append(text[at : match.start()])
                at = match.end()
            return "\n".join(code for _, code in found), "".join([*words, text[at:]]).strip()
    if not text.startswith(("{", "[")):
        return "", text
    return code_of_object(read_json(text)) or (_of_calls(text) if is_bare_call(text) else ""), text
