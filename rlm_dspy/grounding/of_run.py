"""What one run keeps so that its answer rests on its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rlm_dspy.grounding.evidence import Evidence
from rlm_dspy.grounding.sources import find_sources
from rlm_dspy.grounding.unread import unread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic.fields import FieldInfo

    from rlm_dspy.coverage.tracker import Watch
    from rlm_dspy.grounding.options import Grounding
    from rlm_dspy.grounding.sources import Seen
    from rlm_dspy.trajectory import Place, Step, SubCall


class Item(Protocol):
    """A sub-call with its whole inputs."""

    number: int
    inputs: dict[str, Any]

    @property
    def answer(self) -> Mapping[str, Any]:
        """The answer: a `value`, or an error."""


class RunGrounding:
    """What one run keeps so that its answer rests on its inputs.

    Args:
        options: The options of the module.
        watch: Tracks what of the inputs is read; None if it is not watched.
        is_root: Whether it is not a sub-call: places are looked for in root runs only.
    """

    def __init__(self, options: Grounding, watch: Watch | None, *, is_root: bool) -> None:
        self._options, self._watch = options, watch
        self._finds = options.sources and is_root
        self._evidence, self._has_refused = Evidence(), False

    def keep(self, items: Iterable[Item]) -> None:
        """Keep what the sub-calls of a turn received and answered."""
        for item in items if self._finds else ():
            if "value" in item.answer:
                self._evidence.keep(item.number, item.inputs, item.answer["value"])

    def unread(self, code: str, calls: Iterable[SubCall], steps: Sequence[Step]) -> list[str]:
        """Return, once, why a SUBMIT is refused that read too little; see `unread.unread`."""
        below = self._options.warn_below
        if below is None or self._watch is None or self._has_refused:
            return []
        problems = unread(self._watch, below, code, calls, steps)
        self._has_refused = bool(problems)
        return problems

    def sources(
        self, fields: Mapping[str, FieldInfo], outputs: Mapping[str, object], seen: Seen
    ) -> dict[str, list[Place]]:
        """Return the places that the answer came from; see `sources.find_sources`."""
        return find_sources(fields, outputs, seen, self._evidence) if self._finds else {}
