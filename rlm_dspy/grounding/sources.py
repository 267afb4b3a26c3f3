"""Finds the places in the inputs that the values of an answer came from, where that is certain.

A value has one place or none. It has one if it stands word for word in an input, and

- the model wrote it after one such place, and no other, was printed with what stands around it; or
- code cut it out by slices and regular expressions (`replay`), or took it by functions that copy from an input in
  which it stands once; or
- it is the answer of a sub-call that received one such place; if it stands in what the sub-call received several
  times, or not word for word, its place is the whole passage.

Labels, short numbers, values in the question, and those that code or a tool made have none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Literal, get_origin

from rlm_dspy.grounding.dataflow import flow_of
from rlm_dspy.grounding.evidence import leaves
from rlm_dspy.grounding.replay import parts_of
from rlm_dspy.grounding.search import CONTEXT, Found, Search, is_large, places_in
from rlm_dspy.inputs import Text
from rlm_dspy.text import logger
from rlm_dspy.trajectory import Place

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

    from rlm_dspy.grounding.dataflow import Flow
    from rlm_dspy.grounding.evidence import Asked, Evidence
    from rlm_dspy.trajectory import Step, Via

_logger = logger()
_MIN_CHARS = 3
_MIN_TELLING_CHARS = 10
_MIN_AGREEMENT = 24
_MIN_WORD_CHARS = 12
_MAX_VALUES = 100
_MAX_WINDOWS = 50
_PROBE_CHARS = 48
_STRIDE = 24
_MAX_PASSAGE_CHARS = 200_000
_MAX_AROUND_CHARS = 1_000
"""Characters around a passage in what a sub-call received: the question, the instructions."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a run did before it answered.

    Attributes:
        inputs: Its inputs by name.
        shown: The names of those that the first message shows whole.
        subs: The names of its declared subs.
        steps: Its steps.
        submitted: Whether code submitted the answer; else a model read it from the trajectory.
    """

    inputs: Mapping[str, object]
    shown: Collection[str]
    subs: Collection[str]
    steps: Sequence[Step]
    submitted: bool


def find_sources(
    fields: Mapping[str, FieldInfo], outputs: Mapping[str, object], seen: Seen, evidence: Evidence
) -> dict[str, list[Place]]:
    """Return the places that the values of an answer came from, by output field.

    Whatever goes wrong here is logged: the answer is paid for, and must not be lost.

    Args:
        fields: The output fields of the signature.
        outputs: Their values.
        seen: What the run did.
        evidence: Its sub-calls.
    """
    values = {name: value for name, value in outputs.items() if not _is_label(fields[name])}
    try:
        return _find_sources(values, seen, evidence)
    except Exception as error:  # noqa: BLE001 (files that are gone, values that cannot be written, ...)
        _logger.warning("RLM: the places of the answer were not found: %s: %s", type(error).__name__, error)
        return {}


def _find_sources(outputs: Mapping[str, object], seen: Seen, evidence: Evidence) -> dict[str, list[Place]]:
    finder, found = _Finder(seen, evidence.asked), dict[str, list[Place]]()
    for name, value in outputs.items():
        if copied := finder.replayed(name, value):
            found[name] = copied
            continue
        flow = flow_of(finder.codes, name, seen.inputs, seen.subs) if seen.submitted else None
        values = [each for each in dict.fromkeys(leaves(value)) if len(each) >= _MIN_CHARS][:_MAX_VALUES]
        places = (finder.place_of(each, flow) for each in values)
        found[name] = [place for place in places if place is not None]
    return found


@dataclass(frozen=True)
class _Window:
    """A place where a value was seen: what stood before it, and after it."""

    before: str
    after: str

    def is_at(self, found: Found) -> bool:
        """Whether it shows a place of an input: enough of what is around agrees, or all there is."""
        left = _common(self.before[::-1], found.before[::-1])
        right = _common(self.after, found.after)
        is_all = left == len(found.before) < CONTEXT and right == len(found.after) < CONTEXT
        if is_all:
            return left + right > 0 or not (self.before.strip() or self.after.strip())
        agreed = found.before[len(found.before) - left :] + found.after[:right]
        return len(agreed) >= _MIN_AGREEMENT and sum(map(str.isalnum, agreed)) >= _MIN_WORD_CHARS


class _Finder:
    """Finds the places of values of one run."""

    def __init__(self, seen: Seen, asked: list[Asked] | None) -> None:
        self._seen, self._asked, self._search = seen, asked, Search(seen.inputs)
        self._long = Search({name: value for name, value in seen.inputs.items() if name not in seen.shown})
        self.codes = [step.code for step in seen.steps if step.code]
        self._shown = [str(seen.inputs[name]) for name in seen.shown]

    def replayed(self, name: str, value: object) -> list[Place]:
        """Return the places of a field that code cut out of the inputs, if all of its values were."""
        inputs = self._seen.inputs.items()
        texts = {key: str(text) for key, text in inputs if isinstance(text, str | Text) and not is_large(text)}
        parts = parts_of(self.codes, name, texts) if self._seen.submitted else []
        if [part.text.strip() for part in parts] != list(leaves(value)):
            return []
        places = []
        for part in (part for part in parts if part.text.strip()):
            start, words = part.start + len(part.text) - len(part.text.lstrip()), part.text.strip()
            text, end = texts[part.input], start + len(words)
            around = text[max(0, start - CONTEXT) : start], text[end : end + CONTEXT]
            places.append(_place(words, Found(part.input, None, start, *around), "code"))
        return places[:_MAX_VALUES]

    def place_of(self, value: str, flow: Flow | None) -> Place | None:
        """Return the place of a value; None if none is certain."""
        if flow is None:
            return self._written(value) if not self._seen.submitted else None
        made = flow.inputs or flow.sub_calls or flow.others
        if value in flow.typed or (value in flow.literals and not made):
            return self._written(value)
        if value in flow.literals or flow.others:
            return None
        if flow.sub_calls and not flow.inputs:
            return self._answered(value, [each for each in self._asked or () if value in each.values])
        return self._copied(value) if flow.inputs and not flow.sub_calls else None

    def _written(self, value: str) -> Place | None:
        """Return the place of a value that the model wrote: the only one that it was shown."""
        found = self._search.find(value)
        if found is None:
            return None
        if not _is_telling(value):
            found = [each for each in found if value.isdigit() or _is_a_name(value, each)]
        places, is_elsewhere = set[Place](), False
        for window in self._windows_of(value):
            at = [each for each in found if window.is_at(each)]
            if len(at) > 1:
                return None
            is_elsewhere |= not at
            places |= {_place(value, each, "printed") for each in at}
        if is_elsewhere:
            apart = self._shown_apart(value, found)
            if apart is None:
                return None
            places.add(apart)
        return _only({(place.input, place.item, place.start): place for place in places})

    def _shown_apart(self, value: str, found: Sequence[Found]) -> Place | None:
        """Return the place of a value that code printed without what stands around it."""
        if self._asked is None:
            return None
        through = [each for each in self._asked if any(_holds(text, value) for text in each.values)]
        if through:
            return self._answered(value, through)
        no_tools = not any(step.tool_calls for step in self._seen.steps)
        is_certain = len(found) == 1 and self._search.complete and no_tools and _is_telling(value)
        return _place(value, found[0], "printed") if is_certain else None

    def _windows_of(self, value: str) -> Iterator[_Window]:
        """Yield where the model was shown a value, but for what it wrote itself before."""
        for text in self._shown:
            yield from _windows(value, text)
        said = False
        for step in self._seen.steps:
            said |= value in step.code
            text = step.printed if step.kind in ("submitted", "refused") else step.output
            for each in _windows(value, text) if step.kind != "folded" else ():
                if not said or any(map(each.is_at, self._search.find(value) or ())):
                    yield each

    def _copied(self, value: str) -> Place | None:
        """Return the place of a value that code took from an input: the only one there is."""
        found = self._search.find(value)
        said = any(value in code for code in self.codes)
        if not found or len(found) > 1 or said or not (self._search.complete and _is_telling(value)):
            return None
        return _place(value, found[0], "code")

    def _answered(self, value: str, through: Iterable[Asked]) -> Place | None:
        """Return the place of a value that sub-calls answered: the only one that they received."""
        places: dict[tuple[str, str | int | None, int], Place] = {}
        for asked in through:
            place = self._in_what_was_sent(value, asked)
            if place is None:
                return None
            places[place.input, place.item, place.start] = place
        return _only(places)

    def _in_what_was_sent(self, value: str, asked: Asked) -> Place | None:
        windows = [window for text in asked.texts for window in _windows(value, text)]
        if len(windows) == 1 and _is_telling(value):
            found = self._long.find(value)
            at = [each for each in found or () if windows[0].is_at(each)]
            if len(at) == 1:
                return _place(value, at[0], "sub_call")
        return self._passage(value, asked)

    def _passage(self, value: str, asked: Asked) -> Place | None:
        """Return the part of an input that a sub-call received, if it received one part and little else."""
        longest = max(asked.texts, key=len, default="")
        others = [text for text in asked.texts if text is not longest]
        passage = self._longest_passage(longest)
        if passage is None:
            return None
        found, start, end = passage
        around = [longest[:start], longest[end:], *others]
        if sum(map(len, around)) > _MAX_AROUND_CHARS or any(map(self._holds_input, around)):
            return None
        return Place(
            value=value,
            input=found.input,
            item=found.item,
            start=found.start,
            end=found.start + end - start,
            exact=False,
            via="sub_call",
            text=longest[start:end][: 2 * CONTEXT],
        )

    def _longest_passage(self, text: str) -> tuple[Found, int, int] | None:
        """Return the part of an input in the middle of a text, and its offsets in the text, if it is one part."""
        if not _PROBE_CHARS <= len(text) <= _MAX_PASSAGE_CHARS:
            return None
        at = (len(text) - _PROBE_CHARS) // 2
        after = at + _PROBE_CHARS
        probe = text[at:after]
        found = self._long.find(probe, at, len(text) - after, words=False) if _says_something(probe) else None
        passages = []
        for each in found or ():
            left, right = _common(text[:at][::-1], each.before[::-1]), _common(text[after:], each.after)
            passages.append((replace(each, start=each.start - left), at - left, after + right))
        passages.sort(key=lambda passage: passage[1] - passage[2])
        lengths = [end - start for _, start, end in passages]
        is_one = len(lengths) == 1 or (lengths and lengths[0] >= lengths[1] + _STRIDE)
        return passages[0] if is_one else None

    def _holds_input(self, text: str) -> bool:
        """Whether a text may hold a part of an input; one that is shorter than 48 characters may be missed."""
        parts = (text[at : at + _STRIDE] for at in range(0, len(text), _STRIDE))
        telling = (part for part in parts if len(part) == _STRIDE and _says_something(part))
        return any(self._long.find(part, words=False) != [] for part in telling)


def _is_label(field: FieldInfo) -> bool:
    """Whether a field takes one of some values, which are chosen and not copied."""
    kind = field.annotation
    return get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, Enum))


def _place(value: str, found: Found, via: Via) -> Place:
    return Place(
        value=value,
        input=found.input,
        item=found.item,
        start=found.start,
        end=found.start + len(value),
        via=via,
        text=f"{found.before}{value}{found.after}",
    )


def _only(places: Mapping[tuple[str, str | int | None, int], Place]) -> Place | None:
    return next(iter(places.values())) if len(places) == 1 else None


def _windows(value: str, text: str) -> Iterator[_Window]:
    for number, start in enumerate(places_in(text, value)):
        if number == _MAX_WINDOWS:
            return
        end = start + len(value)
        yield _Window(text[max(0, start - CONTEXT) : start], text[end : end + CONTEXT])


def _holds(text: str, value: str) -> bool:
    return next(places_in(text, value), None) is not None


def _common(one: str, other: str) -> int:
    """Return the length of the common prefix."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _says_something(text: str) -> bool:
    return sum(map(str.isalnum, text)) >= len(text) // 2


def _is_a_name(value: str, found: Found) -> bool:
    """Whether a word stands inside a sentence and begins with a capital: then it is not a label, such as `Yes`."""
    before = found.before.rstrip(" ")
    return value[0].isupper() and bool(before) and (before[-1].isalnum() or before[-1] in ",(")


def _is_telling(value: str) -> bool:
    """Whether a value is unlikely to arise otherwise: some words, a long one, or letters with digits."""
    has_digits, has_letters = any(map(str.isdigit, value)), any(map(str.isalpha, value))
    return has_letters and (has_digits or " " in value or len(value) >= _MIN_TELLING_CHARS)
