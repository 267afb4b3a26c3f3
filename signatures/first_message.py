"""Defines `Environment`, the parts of the first message of a run, and their layout as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from rlm_dspy.inputs import Variable
from rlm_dspy.text import shorten_to_fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Output(BaseModel):
    """An output field, as `SUBMIT` takes it."""

    model_config = ConfigDict(frozen=True)

    name: str
    type: str
    """As Python writes it, with the fields of classes."""
    note: str = ""
    """The field's description and constraints."""

    def __str__(self) -> str:
        return f"{self.name}: {self.type}{f'  # {self.note}' if self.note else ''}"


class Environment(BaseModel):
    """The first message of a run, in parts.

    `str` renders it; inside anything that is serialized (the prompt of an adapter, a trace) it is that text.
    `model_dump` gives its parts, which saved demos hold: so a demo can be renamed for another task.
    A `str` is accepted for one that is known only as text.
    """

    model_config = ConfigDict(frozen=True)

    task: str = ""
    """The instructions of the user's signature."""
    variables: tuple[Variable, ...] = ()
    outputs: tuple[Output, ...] = ()
    functions: str = ""
    """What code may call, a line each."""
    runtime: str = ""
    """What the interpreter says of itself."""
    turns: int = 1
    """How many turns the run may take."""
    text: str = ""
    """The whole, if nothing but text is known; the other fields are empty then."""

    @classmethod
    def of(cls, value: Environment | Mapping[str, Any] | str) -> Environment:
        """Return the environment of a demo or a call, also of one that is plain data, as loaded ones are."""
        return value if isinstance(value, Environment) else cls.model_validate(value)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_serializer
    def _as_text(self) -> str:
        return str(self)

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """Return the parts as plain data; those that are empty are left out."""
        parts = {name: getattr(self, name) for name in type(self).model_fields}
        for name in ("variables", "outputs"):
            parts[name] = [each.model_dump(exclude_defaults=True) for each in parts[name]]
        return {name: value for name, value in parts.items() if value}

    @property
    def parts(self) -> list[str]:
        """The paragraphs of the text; the last one asks for the first block, and so tells it from an output."""
        if self.text:
            return [self.text]
        submit = ", ".join(f"{output.name}=..." for output in self.outputs)
        turns = f"You have {self.turns} turns." if self.turns > 1 else "This is the last turn: call SUBMIT now."
        paragraphs = [
            *f"Task: {self.task}".split("\n\n"),
            "\n".join(["Variables, already set:", *(f"- {variable}" for variable in self.variables)]),
            "\n".join(
                [f"When you know the answer, call SUBMIT({submit}):", *(f"- {each}" for each in self.outputs)]
            ),
            f"Functions:\n{self.functions}" if self.functions else "",
            f"Runtime: {self.runtime}" if self.runtime else "",
            f"Write one ```python block per turn. {turns}",
        ]
        return [paragraph for paragraph in paragraphs if paragraph]

    def __str__(self) -> str:
        return "\n\n".join(self.parts)

    def shortened(self, chars: int) -> Environment:
        """Return an environment of about so many characters: names and types stay.

        The longest values of variables and their notes are cut first, what code may call last.
        """
        shorter = self
        for least, names in _CUT_IN_TURN:
            shorter = shorter._cut(chars, least, names)
        return shorter

    def _cut(self, chars: int, least: int, names: Sequence[str]) -> Environment:
        """Return an environment whose texts of these names are cut, the longest first, to `least` at most."""
        found = {name: self._texts(name) for name in names}
        texts = [text for each in found.values() for text in each]
        room = max(chars - len(str(self)) + sum(map(len, texts)), least * len(texts))
        shorter, changed = iter(shorten_to_fit(texts, room)), dict[str, Any]()
        for name in names:
            group, _, field = name.rpartition(".")
            if group:
                parts = zip(getattr(self, group), shorter, strict=False)
                changed[group] = tuple(part.model_copy(update={field: text}) for part, text in parts)
            else:
                changed[name] = next(shorter)
        return self.model_copy(update=changed)

    def _texts(self, name: str) -> list[str]:
        """Return a text of this, or those of its parts: `variables.value`."""
        group, _, field = name.rpartition(".")
        return [getattr(part, field) for part in getattr(self, group)] if group else [getattr(self, name)]


_CUT_IN_TURN = (
    (24, ("variables.value",)),
    (0, ("variables.note", "runtime")),
    (400, ("task", "text")),
    (12, ("variables.value",)),
    (0, ("functions", "outputs.note")),
    (0, ("task", "text", "variables.value")),
)
"""Which texts are cut to shorten an environment, and to how many characters each."""
