"""Records which parts of the inputs the code read, the model was shown and sub-models were sent.

It does nothing outside `watched()`, so a run pays for it only if asked to.
"""

from __future__ import annotations

import ast
import contextlib
from itertools import islice
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import BaseModel, ConfigDict

from rlm_dspy.coverage.text_match import merged, sources_of, strings_in
from rlm_dspy.inputs import Files
from rlm_dspy.replies.code_blocks import tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from rlm_dspy.coverage.text_match import Source
    from rlm_dspy.trajectory import Span

_QUOTED_CHARS = 60
_MIN_CHARS = 3
_MAX_VALUES = 100
_MAX_PLACES = 20
_MAX_FILES = 1_000
_SCANNED_CHARS = 1_000_000_000
_READ_NOTHING = {"len", "type", "isinstance", "id", "SHOW_VARS"}
WATCHED = "rlm_dspy_coverage"
"""The DSPy setting that `watched()` sets."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Record the coverage of the inputs of every run, and its children, that starts inside this scope.

    Like `dspy.context` it applies in DSPy's threads, including those of `dspy.Evaluate`.
    """
    with dspy.context(**{WATCHED: True}):
        yield


def watching() -> bool:
    """Whether `watched()` is active."""
    return bool(dspy.settings.get(WATCHED))


class Occurrence(BaseModel):
    """A place in an input where a part of the answer appears."""

    model_config = ConfigDict(frozen=True)

    value: str
    """The string that was found."""
    input: str
    start: int
    """Offset in characters, as in `Span`."""
    end: int
    before: str = ""
    """Up to 60 characters before it."""
    after: str = ""
    """Up to 60 characters after it."""


class Watch:
    """Finds the parts of one run's inputs that code reads, the model is shown, and sub-models are sent.

    Texts are watched, and lists and dicts that contain strings: these as their strings
    in order, joined by line breaks. Of a `Files` it is known which files were opened: their spans are in bytes of
    all files, one after the other. Others are left out, and so are inputs longer than `text_match.MAX_CHARS`.

    Args:
        inputs: The inputs by name.

    Attributes:
        left_out: The reasons why inputs are not watched, by name.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self._files = {name: value for name, value in inputs.items() if isinstance(value, Files)}
        self._sources, self.left_out = sources_of({n: v for n, v in inputs.items() if n not in self._files})
        self._opened: dict[str, set[str]] = {name: set() for name in self._files}

    @property
    def sizes(self) -> dict[str, int]:
        """The number of characters of each watched input; of a `Files`, of bytes."""
        sizes = {name: len(source.text) for name, source in self._sources.items()}
        return sizes | {name: files.total for name, files in self._files.items()}

    def opened(self) -> tuple[Span, ...]:
        """Return the files that were opened since the last call."""
        spans: list[Span] = []
        for name, files in self._files.items():
            new = set(files.opened) - self._opened[name]
            self._opened[name] |= new
            spans += [(name, *span) for span in files.spans(new)]
        return tuple(merged(spans, _MAX_FILES))

    def read(self, code: str) -> tuple[Span, ...]:
        """Return the parts of the inputs that a code block reads, judged by its source: an upper bound.

        A slice or an item with constant bounds gives that part; `len`, `type` and `isinstance` give nothing; any
        other use of an input's name gives the whole input, even if the line is not reached. A read
        from a copy counts where the copy was made.
        """
        try:
            tree = tree_of(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return ()
        reads = _Reads(self._sources)
        with contextlib.suppress(RecursionError):
            reads.visit(tree)
        return tuple(merged(reads.spans))

    def shown(self, text: str) -> tuple[Span, ...]:
        """Return the parts of the inputs that a text repeats; see `Source.repeated_in` for what is found."""
        found = (span for source in self._sources.values() for span in source.repeated_in(text))
        return tuple(merged(found))

    def sent(self, inputs: Mapping[str, Any]) -> tuple[Span, ...]:
        """Return the parts of the inputs that a sub-call receives.

        Args:
            inputs: The whole inputs of the sub-call by field.
        """
        return tuple(merged(span for text in strings_in(inputs) for span in self.shown(text)))

    def occurrences(self, outputs: Mapping[str, Any]) -> dict[str, list[Occurrence]]:
        """Return where the strings of an answer appear in the inputs, verbatim and as whole words.

        A string that does not occur as a whole is searched in parts, as in `shown`. Strings of fewer
        than three characters are skipped; at most 20 places of each of 100 strings are returned.

        Args:
            outputs: The output fields; lists, dicts and models in JSON's types.
        """
        return {field: _of_field(value, self._sources) for field, value in outputs.items()}


def looked_into(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the coverage fields of a run's `Record`: `input_chars`, `left_out`, `occurrences`.

    Empty outside of `watched()`.

    Args:
        inputs: The inputs by name.
        outputs: The output fields in JSON's types; empty if the run did not end.
    """
    if not watching():
        return {}
    watch = Watch(inputs)
    return {
        "input_chars": watch.sizes,
        "left_out": watch.left_out,
        "occurrences": watch.occurrences(outputs),
    }


class _Reads(ast.NodeVisitor):
    """Collects what a syntax tree reads of the inputs."""

    def __init__(self, sources: dict[str, Source]) -> None:
        self._sources = sources
        self.spans: list[Span] = []

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _READ_NOTHING:
            others = [argument for argument in node.args if not isinstance(argument, ast.Name)]
            for argument in others:
                self.visit(argument)
        else:
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        source = self._sources.get(node.value.id) if isinstance(node.value, ast.Name) else None
        part = _part(source, node.slice) if source else None
        if source and part is not None:
            self.spans.append((source.name, *part))
        else:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id in self._sources:
            self.spans += self._sources[node.id].whole()


def _part(source: Source, subscript: ast.expr) -> tuple[int, int] | None:
    """Return the part of an input that a constant subscript selects; None if it is not constant or empty."""
    try:
        if isinstance(subscript, ast.Slice):
            bounds = (subscript.lower, subscript.upper, subscript.step)
            taken: Any = slice(*(None if bound is None else ast.literal_eval(bound) for bound in bounds))
        else:
            taken = ast.literal_eval(subscript)
        places = range(len(source.text)) if source.items is None else list(source.items.values())
        if isinstance(taken, slice):
            chosen: Any = places[taken]
        else:
            chosen = [source.items[taken] if source.items and taken in source.items else places[taken]]
    except (ValueError, TypeError, LookupError):
        return None
    if not chosen:
        return 0, 0
    if source.items is None:
        return min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1  # a range: min() would iterate over it
    return min(start for start, _ in chosen), max(end for _, end in chosen)


def _of_field(value: JsonValue, sources: dict[str, Source]) -> list[Occurrence]:
    found: list[Occurrence] = []
    left = _SCANNED_CHARS
    texts = dict.fromkeys(text.strip().rstrip(".") for text in strings_in(value))
    for text in [text for text in texts if len(text) >= _MIN_CHARS][:_MAX_VALUES]:
        for source in sources.values():
            places = list(islice(_places(text, source), _MAX_PLACES)) or [
                span[1:] for span in source.repeated_in(text)
            ]
            left -= len(source.text)
            found += [_occurrence(source, start, end) for start, end in places]
        if left < 0:
            break
    return found


def _places(text: str, source: Source) -> Iterator[tuple[int, int]]:
    """Yield the positions where the text occurs as a whole word or number."""
    own = source.text
    start = own.find(text)  # a regular expression takes a hundred times as long
    while start >= 0:
        end = start + len(text)
        if not (text[0].isalnum() and own[start - 1 : start].isalnum()) and not (
            text[-1].isalnum() and own[end : end + 1].isalnum()
        ):
            yield start, end
        start = own.find(text, end)


def _occurrence(source: Source, start: int, end: int) -> Occurrence:
    text = source.text
    return Occurrence(
        value=text[start:end],
        input=source.name,
        start=start,
        end=end,
        before=text[max(0, start - _QUOTED_CHARS) : start],
        after=text[end : end + _QUOTED_CHARS],
    )
