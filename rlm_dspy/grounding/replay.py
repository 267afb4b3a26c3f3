"""Follows a submitted value back to its offsets in an input: slices and regular expressions.

It evaluates the code anew, but only expressions whose result is certain from the source: constants, and names that
are bound once, outside of loops, functions and branches. A value counts only if it is the one that was submitted.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import regex

from rlm_dspy.replies.code_blocks import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SECONDS = 0.5
"""For one regular expression."""
_MAX_SEARCHES = 10
_MAX_PATTERN_CHARS = 1_000
_MOST = 1_000
_ONE_GROUP = 2
"""The whole match, and the group that `findall` returns in its place."""
_FINDERS = {"search", "match", "fullmatch", "findall", "finditer"}
_STRIPPERS = {"strip", "lstrip", "rstrip"}


@dataclass(frozen=True)
class Part:
    """A part of an input.

    Attributes:
        input: Its name.
        start: The offset.
        text: What stands there.
    """

    input: str
    start: int
    text: str

    def cut(self, start: int, end: int) -> Part:
        """Return a part of it."""
        return Part(self.input, self.start + start, self.text[start:end])


@dataclass(frozen=True)
class _Match:
    groups: tuple[Part | None, ...]


Known: TypeAlias = "Part | _Match | list[Known] | None"


def parts_of(codes: Iterable[str], name: str, texts: Mapping[str, str]) -> list[Part]:
    """Return the parts of the inputs that the code of a run submitted for a field; empty if that is not certain.

    Args:
        codes: The code blocks in order; SUBMIT is called in the last.
        name: The output field.
        texts: The inputs that are texts.
    """
    trees = [tree for code in codes if (tree := parse(code)) is not None]
    calls = [node for node in ast.walk(trees[-1]) if _is_submit(node)] if trees else []
    if len(calls) != 1 or not isinstance(calls[0], ast.Call):
        return []
    given = [keyword.value for keyword in calls[0].keywords if keyword.arg == name]
    given = given or (calls[0].args if len(calls[0].args) == 1 and not calls[0].keywords else [])
    try:
        found = _Evaluation(trees, texts).value(given[0]) if given else None
    except (regex.error, TimeoutError, RecursionError, LookupError, TypeError, ValueError):
        return []
    values = found if isinstance(found, list) else [found]
    return [value for value in values if isinstance(value, Part)] if all(values) else []


def _is_submit(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SUBMIT"


class _Evaluation:
    """Evaluates expressions over texts whose offsets are known."""

    def __init__(self, trees: list[ast.Module], texts: Mapping[str, str]) -> None:
        nodes = [node for tree in trees for node in ast.walk(tree)]
        stored = Counter(
            node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
        )
        self._texts = {name: text for name, text in texts.items() if not stored[name]}
        self._known: dict[str, Known] = {}
        self._searches = 0
        self._bound = {
            node.targets[0].id: node.value
            for tree in trees
            for node in tree.body
            if isinstance(node, ast.Assign)
            and len(node.targets) == 1
            and isinstance(node.targets[0], ast.Name)
            and stored[node.targets[0].id] == 1
        }

    def value(self, node: ast.expr) -> Known:
        """Return what an expression is; None if that is not certain."""
        found: Known = None
        match node:
            case ast.Name(id=name) if name in self._texts:
                found = Part(name, 0, self._texts[name])
            case ast.Name(id=name) if name in self._bound:
                if name not in self._known:
                    self._known[name] = self.value(self._bound[name])
                found = self._known[name]
            case ast.Subscript():
                found = self._subscript(self.value(node.value), node.slice)
            case ast.Call(func=ast.Attribute() as function, keywords=[]):
                found = self._method(function, node.args)
            case ast.List():
                found = [self.value(item) for item in node.elts]
            case ast.ListComp(generators=[ast.comprehension(target=ast.Name(id=name), ifs=[]) as each]):
                found = self._each(node.elt, name, self.value(each.iter))
        return found

    def _each(self, node: ast.expr, name: str, values: Known) -> Known:
        """Return what a comprehension makes of its values: `m.group(1)`, `x.strip()`."""
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=own), attr=method), keywords=[]) if own == name:
                if isinstance(values, list):
                    return [self._of_value(value, method, node.args) for value in values]
        return None

    def _subscript(self, value: Known, node: ast.expr) -> Known:
        if isinstance(node, ast.Slice):
            if node.step is not None:
                return None
            bounds = slice(*(None if each is None else _whole(each) for each in (node.lower, node.upper)))
            if isinstance(value, list):
                return value[bounds]
            return value.cut(*bounds.indices(len(value.text))[:2]) if isinstance(value, Part) else None
        at = _whole(node)
        if isinstance(value, _Match):
            return value.groups[at]
        return value[at] if isinstance(value, list) else None

    def _method(self, function: ast.Attribute, arguments: list[ast.expr]) -> Known:
        if isinstance(function.value, ast.Name) and function.value.id == "re":
            pattern, text, *flags = arguments
            found = self.value(text)
            if function.attr not in _FINDERS or not isinstance(found, Part):
                return None
            self._searches += 1
            written = ast.literal_eval(pattern)
            if self._searches > _MAX_SEARCHES or len(written) > _MAX_PATTERN_CHARS:
                return None
            return _found(function.attr, written, found, _flags(flags))
        return self._of_value(self.value(function.value), function.attr, arguments)

    def _of_value(self, value: Known, method: str, arguments: list[ast.expr]) -> Known:
        if isinstance(value, _Match) and method == "group":
            return value.groups[_whole(arguments[0]) if arguments else 0]
        if isinstance(value, Part) and method in _STRIPPERS and not arguments:
            kept = getattr(value.text, method)()
            start = len(value.text) - len(value.text.lstrip()) if method != "rstrip" else 0
            return value.cut(start, start + len(kept))
        return None


def _whole(node: ast.expr) -> int:
    value = ast.literal_eval(node)
    if not isinstance(value, int):
        raise TypeError("not a whole number")
    return value


def _flags(nodes: list[ast.expr]) -> int:
    """Return the flags of a regular expression: `re.I | re.M`."""
    if not nodes:
        return 0
    names = [node.attr for node in ast.walk(nodes[0]) if isinstance(node, ast.Attribute)]
    return sum({int(getattr(regex, name)) for name in names})


def _found(how: str, pattern: str, part: Part, flags: int) -> Known:
    if how in ("findall", "finditer"):
        matches = list(islice(regex.finditer(pattern, part.text, flags, timeout=_SECONDS), _MOST + 1))
        if len(matches) > _MOST:
            return None
        groups = [_groups(match, part) for match in matches]
        if how == "finditer":
            return list(groups)
        has_one = all(len(each.groups) <= _ONE_GROUP for each in groups)
        return [each.groups[-1] for each in groups] if has_one else None
    match = getattr(regex, how)(pattern, part.text, flags, timeout=_SECONDS)
    return None if match is None else _groups(match, part)


def _groups(match: regex.Match[str], part: Part) -> _Match:
    spans = [match.span(number) for number in range(match.re.groups + 1)]
    return _Match(tuple(None if span[0] < 0 else part.cut(*span) for span in spans))
