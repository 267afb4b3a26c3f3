"""Defines `Environment`, the parts of the first message of a run, and their layout as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from rlm_dspy.inputs import Variable
from rlm_dspy.text import fitted

if TYPE_CHECKING:
    from collections.abc import Mapping


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
        """Return an environment of about so many characters: its longest texts are cut; names and types stay."""
        values = [variable.value for variable in self.variables]
        notes = [*(variable.note for variable in self.variables), *(output.note for output in self.outputs)]
        texts = [self.task, self.functions, self.runtime, self.text, *values, *notes]
        room = chars - len(str(self)) + sum(map(len, texts))
        task, functions, runtime, text, *rest = fitted(texts, max(0, room))
        value, note = iter(rest[: len(values)]), iter(rest[len(values) :])
        variables = (each.model_copy(update={"value": next(value), "note": next(note)}) for each in self.variables)
        known = {"task": task, "functions": functions, "runtime": runtime, "text": text}
        shorter = {**known, "variables": tuple(variables)}  # before the outputs take their notes
        outputs = (each.model_copy(update={"note": next(note)}) for each in self.outputs)
        return self.model_copy(update={**shorter, "outputs": tuple(outputs)})
