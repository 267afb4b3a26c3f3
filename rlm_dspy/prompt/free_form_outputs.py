"""Parses outputs from a reply that no adapter could parse: plain text, headings, bare JSON or code."""

from __future__ import annotations

import ast
import contextlib
import datetime as dt
import itertools
import re
import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from rlm_dspy._dspy_compat import annotation_allows_none
from rlm_dspy.budget.lm_info import text_of
from rlm_dspy.interpreters.worker.cell import submitted
from rlm_dspy.repl.coercion import LEAST_TIMESTAMP, NO_DATE, TOO_DEEP, read_answer, read_value, type_of
from rlm_dspy.replies.code_blocks import parse
from rlm_dspy.replies.literals import Literals, is_call, literal_of
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
_IN_TAGS = re.compile(r"<(?P<tag>(?:final_?)?answer)>(?P<value>.*?)</(?P=tag)>", re.DOTALL | re.IGNORECASE)
"""As DeepSeek-R1 and others are trained to end."""
_BOXED = re.compile(r"\\boxed\{(?P<value>(?:[^{}]|\{[^{}]*\})*)\}")
_ALL_BOXED = re.compile(rf"\W*(?:the (?:final )?answer is)?\W*{_BOXED.pattern}\W*", re.IGNORECASE)
_AFTER_ANSWER = re.compile(
    r"(?:^|\n)[>#*_ \t-]*(?:final )?answer[*_]*[ \t]*:[*_]*(?P<value>[^\n]+)\Z", re.IGNORECASE
)
"""A last line that is titled as the answer."""
_DECORATION = " \t\n*_`\"'."
_LAST_SMALL_YEAR = dt.datetime.fromtimestamp(LEAST_TIMESTAMP, dt.UTC).year
_BEGINS_LIST = re.compile(r"\s*(?:\[|(?:[-*\u2022]|1[.)])\s)")
_LEADS_TO_LIST = re.compile(r"\s*[^\n]*:[*_]*[ \t]*\n\s*(?=(?:[-*\u2022]|1[.)])[ \t])")
_WRAPPERS = {"output", "outputs", "properties", "response", "result", "arguments", "parameters"}
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
        values, problems = read_answer(signature, with_none(signature, found))
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
    names = list(signature.output_fields)
    calls = (_submitted_in(value, names) for value in found.values() if isinstance(value, str))
    call = next((values for values in calls if values is not None), None)
    if call is not None:
        return read_answer(signature, call)
    found = with_none(signature, found)
    if problem := taken_for_seconds(found, replies):
        return {}, [problem]
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


def with_none(signature: type[dspy.Signature], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields, with None for the text `None` or `null` in a field that allows None."""
    optional = {
        name for name, field in signature.output_fields.items() if annotation_allows_none(field.annotation)
    }
    return {
        name: None if name in optional and isinstance(value, str) and value.strip() in ("None", "null") else value
        for name, value in found.items()
    }


def taken_for_seconds(found: Mapping[str, Any], replies: Sequence[Any]) -> str:
    """Return the problem of a date that DSPy parsed from a bare number, as seconds since 1970; else empty."""
    text = text_of(replies[-1]) if replies else ""
    early = [
        name for name, value in found.items() if isinstance(value, dt.date) and value.year <= _LAST_SMALL_YEAR
    ]
    number = r"\b{}\b\W+?-?\d+(?:\.\d+)?\"?\s*(?:[,}}\[]|$)"
    named = (name for name in early if re.search(number.format(re.escape(name)), text))
    return next((f"{name}: {NO_DATE}" for name in named), "")


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
    """Return the value with which a text ends a run as other engines do; empty if it is not a literal.

    None for a text without such an ending. `FINAL` takes words without quotes (rlms).
    """
    found = _ENDING.fullmatch(text)
    if found is None:
        return None
    inside = (found["inside"] if found["inside"] is not None else found["bound"] or found["returned"]).strip()
    with contextlib.suppress(ValueError, TypeError, SyntaxError, *TOO_DEEP):
        return (literal_of(inside),)
    if found["returned"]:
        return None  # a sentence
    return (inside,) if found["call"] == "FINAL" and inside else ()


def _readings(signature: type[dspy.Signature], text: str) -> Iterator[dict[str, Any]]:
    fields = signature.output_fields
    if (submitted_values := _submitted_in(text, list(fields))) is not None:
        yield submitted_values
        return
    if (ending := _ending_in(text)) is not None:
        yield submitted(list(fields), ending, {}) if len(ending) == len(fields) else {}
        return
    by_name = {_plain(name): name for name in fields}
    needed = [name for name, field in fields.items() if field.is_required()] if len(fields) > 1 else list(fields)
    if text.lstrip().startswith("{"):
        with contextlib.suppress(*TOO_DEEP):
            yield from _in_object(read_value(text, dict), by_name, needed)
    if (tagged := _in_tags(text, list(fields))).keys() >= set(needed):
        yield tagged
    if under := _under_headings(text, by_name):
        yield under
        yield {name: value.strip(_DECORATION) for name, value in under.items()}
    if len(needed) == 1:
        yield from ({needed[0]: value} for value in _values_in(text, fields[needed[0]].annotation))


def _values_in(text: str, annotation: TypeForm[Any]) -> Iterator[str]:
    """Yield what a text may mean as the value of the one output."""
    for value in _answers_in(text, is_words=annotation is str):
        yield value.strip()
        yield value.strip(_DECORATION)
    if _BEGINS_LIST.match(text) or _takes_words(annotation):
        yield text.strip()
        yield text.strip(_DECORATION)
    elif lead := _LEADS_TO_LIST.match(text):
        yield text[lead.end() :].strip()


def _in_object(parsed: dict[str, Any], by_name: Mapping[str, str], needed: list[str]) -> Iterator[dict[str, Any]]:
    inside = _unwrapped(parsed, by_name)
    named = {by_name[_plain(key)]: value for key, value in inside.items() if _plain(key) in by_name}
    if named:
        yield named
    if len(needed) == 1 and (not named or inside is not parsed):
        yield {needed[0]: parsed}


def _unwrapped(parsed: dict[str, Any], by_name: Mapping[str, str]) -> dict[str, Any]:
    """Return an object without one around it that names no field, as small models copy it from a JSON schema."""
    match [*parsed.items()]:
        case [(str(key), dict(inside))] if key.lower() in _WRAPPERS and _plain(key) not in by_name:
            return inside if any(_plain(name) in by_name for name in inside) else parsed
    return parsed


def _in_tags(text: str, names: list[str]) -> dict[str, str]:
    """Return what stands in the tags that `dspy.XMLAdapter` asks for, on lines of their own."""
    pattern = r"^[ \t]*<{0}>\s*(.*?)\s*</{0}>[ \t]*$"
    found = {name: re.search(pattern.format(name), text, re.DOTALL | re.MULTILINE) for name in names}
    return {name: tag[1] for name, tag in found.items() if tag}


def _answers_in(text: str, *, is_words: bool) -> Iterator[str]:
    """Yield what a text marks as its answer: in tags, in a box, or in a last line with that title."""
    yield from (found["value"] for found in [*_IN_TAGS.finditer(text)][-1:])
    boxed = [found] if is_words and (found := _ALL_BOXED.fullmatch(text)) else []
    boxed = boxed if is_words else [*_BOXED.finditer(text)][-1:]
    yield from (found["value"] for found in boxed)
    if found := _AFTER_ANSWER.search(text.rstrip()):
        yield found["value"]


def _submitted_in(text: str, names: list[str]) -> dict[str, Any] | None:
    """Return the arguments of the first call of `SUBMIT` in the code of a reply, by output field.

    Empty if they are not all literals, or names of some; None without a call. No output is waited for here.
    """
    reply = read_reply(text)
    tree = parse(f"{reply.code}\n{reply.left_out}")
    call = next((node for node in ast.walk(tree) if is_call(node, "SUBMIT")), None) if tree else None
    if tree is None or not isinstance(call, ast.Call):
        return None
    values = Literals(tree)
    with contextlib.suppress(ValueError, TypeError, *TOO_DEEP):
        args = tuple(values.of(value) for value in call.args)
        kwargs = {str(each.arg): values.of(each.value) for each in call.keywords}
        if ... not in (*args, *kwargs.values()):
            return submitted(names, args, kwargs)
    return {}


def as_submit(signature: type[dspy.Signature], code: str) -> str:
    """Return code that does no more than print its answer, or assign it, as a call of `SUBMIT`; else empty."""
    tree = parse(code)
    values, needed = Literals(tree) if tree else None, list(signature.output_fields)
    if values is None or not (shown := values.shown()):
        return ""
    by_name = (
        values.named(needed) if values.known.keys() >= set(needed) else dict(zip(needed, shown[-1:], strict=False))
    )
    if len(by_name) < len(needed):
        return ""
    return f"SUBMIT({', '.join(f'{name}={value!r}' for name, value in by_name.items())})"


def _under_headings(text: str, by_name: dict[str, str]) -> dict[str, str]:
    """Return the text after each heading that names a field; the first one if repeated."""
    names = "|".join("[ _-]".join(map(re.escape, name.split())) for name in by_name)
    with_colon = rf"(?:[>#*_`-][>#*_` \t-]*)?(?P<name>{names})[*_`]*[ \t]*[:=]"
    alone = rf"(?:#+[ \t]*[*_]*|\*\*|__)(?P<title>{names})[*_]*[ \t]*$"
    mark = r"(?:\*\*)?\[\[ ?## ?(?P<mark>\w+) ?## ?\]\]"
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
