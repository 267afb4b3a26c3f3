"""Parses outputs from a reply that no adapter could parse: plain text, headings, bare JSON or code."""

from __future__ import annotations

import ast
import contextlib
import itertools
import re
import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from rlm_dspy.budget.lm_info import text_of
from rlm_dspy.interpreters.worker.cell import submitted
from rlm_dspy.repl.coercion import TOO_DEEP, read_answer, read_value, type_of
from rlm_dspy.replies.code_blocks import tree_of
from rlm_dspy.replies.reply_parser import read_reply
from rlm_dspy.replies.thinking import split_thinking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import dspy
    from typing_extensions import TypeForm

_FENCED = re.compile(r"\s*```\w*\n(?P<inside>.*?)\n?```\s*", re.DOTALL)
_ENDING = re.compile(
    r"\s*(?:(?P<call>FINAL|FINAL_VAR|FINAL_ANSWER|final_answer)\((?P<inside>.*)\)"
    r"|answer\[[\"'](?:content|answer)[\"']\] *= *(?P<bound>.*)|return[ \t]+(?P<returned>.*))\s*",
    re.DOTALL,
)
"""The endings of rlms, smolagents and minrlm, as a whole text."""
_DECORATION = " \t\n*_`\"'."
_NOTHING = ("none", "null", "")
_CONTAINERS = (list, dict, set, frozenset, tuple)


def read_prose(signature: type[dspy.Signature], text: str) -> tuple[dict[str, Any], list[str]]:
    """Parse the outputs of a signature from a reply without an adapter's format.

    In this order: a JSON object with the fields; headings with their names (`**answer**: 42`, `## Answer`); and if
    only one field is required, the whole reply as its value. Code that calls `SUBMIT` counts only for its
    literal arguments (`SUBMIT(answer="42")`).

    Returns:
        The values by field name, and the problems, as from `read_answer`; empty if there are none. With problems
        the values of the reading that has the most.
    """
    if fenced := _FENCED.fullmatch(text):
        text = fenced["inside"]
    most, problems = dict[str, Any](), ["the reply is empty"]
    for found in _readings(signature, text) if text.strip() else ():
        values, problems = read_answer(signature, found)
        if not problems:
            return values, []
        if sum(name in found for name in values) > len(most):
            most = {name: value for name, value in values.items() if name in found}
    return most, problems


def read_fields(
    signature: type[dspy.Signature], found: Mapping[str, Any], replies: Sequence[Any] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Return the result of `read_answer` for the fields that an adapter parsed.

    A model may continue as in the REPL: code in a field that calls `SUBMIT` gives all fields, and is never
    the answer itself. An adapter gives None for each field that allows it and that it does not find.

    Args:
        signature: The signature of the outputs.
        found: The fields.
        replies: The whole outputs of the LM for each request, to be read in free form if no field was found.
    """
    if (values := unmarked_outputs(signature, found, replies)) is not None:
        return values, []
    calls = (_submit_in(value) for value in found.values() if isinstance(value, str))
    call = next(filter(None, calls), None)
    if call is not None:
        return read_answer(signature, _written_out(call, list(signature.output_fields)))
    endings = {name: _ending_in(value) for name, value in found.items() if isinstance(value, str)}
    ended = {name: ending[0] for name, ending in endings.items() if ending}
    said = {name: value for name, value in found.items() if endings.get(name) != ()}
    return read_answer(signature, said | ended)


def unmarked_outputs(
    signature: type[dspy.Signature], found: Mapping[str, Any], replies: Sequence[Any]
) -> dict[str, Any] | None:
    """Return the outputs of the last reply in free form, if an adapter found only None, and no mark of a field.

    None if the adapter found something, or there is no other reading.
    """
    fields, text = signature.output_fields, text_of(replies[-1]) if replies else ""
    if any(found.get(name) is not None for name in fields) or any(f"<{name}>" in text for name in fields):
        return None
    said = outputs_in_words(signature, replies[-1:])
    return said if any(str(value).strip().lower() not in _NOTHING for value in said.values()) else None


def outputs_in_words(signature: type[dspy.Signature], replies: Sequence[Any]) -> dict[str, Any]:
    """Return the outputs of the last reply that has them in free form; empty if none has.

    Args:
        signature: The signature of the outputs.
        replies: The whole outputs of the LM for each request.
    """
    read = (_read_outputs(signature, outputs) for outputs in reversed(replies))
    return next((values for values, problems in read if not problems), {})


def takes_any_text(signature: type[dspy.Signature]) -> bool:
    """Whether a refusal, or talk about the format, would do as the value of an output."""
    for field in signature.output_fields.values():
        with contextlib.suppress(ValueError):
            read_value("some words", type_of(field))
            return True
    return False


def some_outputs(signature: type[dspy.Signature], replies: Sequence[Any]) -> dict[str, Any]:
    """Return those outputs that fit, of the last of the replies in which the most do."""
    return max((_read_outputs(signature, outputs)[0] for outputs in reversed(replies)), key=len, default={})


def _read_outputs(signature: type[dspy.Signature], outputs: Any) -> tuple[dict[str, Any], list[str]]:
    return read_prose(signature, split_thinking(text_of(outputs), fields=signature.output_fields)[1])


def _ending_in(text: str) -> tuple[Any, ...] | None:
    """Return the value with which a text ends a run as other engines do; empty if it is no literal.

    None for a text that is no such ending. `FINAL` takes words without quotes (rlms).
    """
    found = _ENDING.fullmatch(text)
    if found is None:
        return None
    inside = (found["inside"] if found["inside"] is not None else found["bound"] or found["returned"]).strip()
    with contextlib.suppress(ValueError, TypeError, SyntaxError, *TOO_DEEP):
        return (ast.literal_eval(inside),)
    if found["returned"]:
        return None  # a sentence
    return (inside,) if found["call"] == "FINAL" and inside else ()


def _readings(signature: type[dspy.Signature], text: str) -> Iterator[dict[str, Any]]:
    fields = signature.output_fields
    if (call := _submit_in(text)) is not None:
        yield _written_out(call, list(fields))
        return
    if (ending := _ending_in(text)) is not None:
        yield submitted(list(fields), ending, {}) if len(ending) == len(fields) else {}
        return
    by_name = {_plain(name): name for name in fields}
    needed = [name for name, field in fields.items() if field.is_required()] if len(fields) > 1 else list(fields)
    if text.lstrip().startswith("{"):
        with contextlib.suppress(*TOO_DEEP):
            told = read_value(text, dict)
            named = {by_name[_plain(key)]: value for key, value in told.items() if _plain(key) in by_name}
            if named or len(needed) == 1:
                yield named or {needed[0]: told}
    if under := _under_headings(text, by_name):
        yield under
        yield {name: value.strip(_DECORATION) for name, value in under.items()}
    if len(needed) == 1 and (text.lstrip().startswith("[") or _takes_words(fields[needed[0]].annotation)):
        yield {needed[0]: text.strip()}
        yield {needed[0]: text.strip(_DECORATION)}


def _submit_in(text: str) -> ast.Call | None:
    """Return the first call of `SUBMIT` in the code of a reply, if any; here no output is waited for."""
    reply = read_reply(text)
    with contextlib.suppress(SyntaxError, ValueError, *TOO_DEEP):
        for node in ast.walk(tree_of(f"{reply.code}\n{reply.left_out}")):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SUBMIT":
                return node
    return None


def _written_out(call: ast.Call, names: list[str]) -> dict[str, Any]:
    """Return the arguments of a `SUBMIT` call by output field; empty if they are not all literals."""
    with contextlib.suppress(ValueError, TypeError, *TOO_DEEP):
        args = tuple(ast.literal_eval(value) for value in call.args)
        kwargs = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        if ... not in (*args, *kwargs.values()):
            return submitted(names, args, kwargs)
    return {}


def _under_headings(text: str, by_name: dict[str, str]) -> dict[str, str]:
    """Return the text after each heading that names a field; the first one if repeated."""
    names = "|".join("[ _-]".join(map(re.escape, name.split())) for name in by_name)
    with_colon = rf"(?:[>#*_`-][>#*_` \t-]*)?(?P<name>{names})[*_`]*[ \t]*[:=]"
    alone = rf"(?:#+[ \t]*[*_]*|\*\*|__)(?P<title>{names})[*_]*[ \t]*$"
    mark = r"\[\[ ## (?P<mark>\w+) ## \]\]"
    pattern = rf"^[ \t]*(?:{with_colon}|{alone}|{mark})[*_`]*"
    found = list(re.finditer(pattern, text, re.IGNORECASE | re.MULTILINE))
    values: dict[str, str] = {}
    for heading, after in itertools.zip_longest(found, found[1:]):
        name = by_name.get(_plain(heading["name"] or heading["title"] or heading["mark"]))
        if name is not None:
            values.setdefault(name, text[heading.end() : after.start() if after else None].strip())
    return values


def _plain(name: str) -> str:
    return re.sub(r"[ _-]+", " ", str(name)).strip().lower()


def _takes_words(annotation: TypeForm[Any]) -> bool:
    """Whether a value of a type is written as words or a number."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return any(_takes_words(part) for part in get_args(annotation) if part is not type(None))
    if origin is not None:
        return origin is Literal
    return not (isinstance(annotation, type) and issubclass(annotation, _CONTAINERS)) and not hasattr(
        annotation, "model_fields"
    )
