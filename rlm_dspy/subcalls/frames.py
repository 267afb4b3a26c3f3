"""Defines the schema of the requests from the REPL: every frame is validated before anything else reads it.

Model code in a REPL can send any JSON, whatever the helpers in `in_repl` do. An invalid frame is rejected with a
message that names the part. Nothing in a frame is resolved as a name of the host.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.repl.value_codec import without_media_marks
from rlm_dspy.text import all_sendable, beginning

MAX_TYPE_CHARS = 10_000
"""Maximum characters of a signature with types and classes, without instructions and descriptions."""
_MAX_TEXT_CHARS = 100_000
_MAX_TURNS = 100
_MAX_SIZE = 2**31 - 1
_MAX_BOUND = 10**300
_SHOWN_PROBLEMS = 3
_TOLD_PROBLEMS = 1_000
"""With more problems in one frame, only their number is reported: pydantic lists all or none, 1 KB each."""
_SHOWN_CHARS = 120


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


ModuleKind = Literal["Predict", "ChainOfThought", "ReAct", "ReActV2", "RLM"]
AGENTS: frozenset[ModuleKind] = frozenset({"ReAct", "ReActV2"})
"""The modules that take tools."""
Prose = Annotated[str, Field(max_length=_MAX_TEXT_CHARS)]
Number = Annotated[int, Field(gt=-_MAX_BOUND, lt=_MAX_BOUND)] | Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[int, Field(ge=0, le=_MAX_SIZE)]
Scalar = str | bool | Number | None


class Constraints(_Frame):
    """The constraints of pydantic's `Field`, as plain numbers and strings; a str bounds a date."""

    gt: Number | str | None = None
    ge: Number | str | None = None
    lt: Number | str | None = None
    le: Number | str | None = None
    multiple_of: (
        Annotated[int, Field(gt=0, lt=_MAX_BOUND)] | Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    ) = None
    min_length: Size | None = None
    max_length: Size | None = None
    pattern: str | None = None
    max_digits: Size | None = None
    decimal_places: Size | None = None
    allow_inf_nan: bool | None = None
    strict: bool | None = None


def _chars(value: Any) -> int:
    if isinstance(value, BaseModel):
        return sum(_chars(item) for name, item in value if name not in ("instructions", "doc", "desc"))
    if isinstance(value, dict):
        return sum(len(str(name)) + _chars(item) for name, item in value.items())
    return sum(map(_chars, value)) if isinstance(value, list) else len(str(value))


class FieldFrame(_Frame):
    """A field of a class or of a signature.

    Attributes:
        type: Its type, as text.
        required: Whether it must be given.
        default: Its default value.
        desc: Its description.
        constraints: Its constraints.
    """

    type: str
    required: bool = True
    default: Any = None
    desc: Prose = ""
    constraints: Constraints = Constraints()


class SignatureField(FieldFrame):
    """A field of a signature: an input or an output."""

    name: str
    way: Literal["in", "out"]


class ModelFrame(_Frame):
    """A class with fields: a pydantic model, a dataclass, a `TypedDict`."""

    kind: Literal["model"]
    fields: dict[str, FieldFrame] = Field(min_length=1)
    doc: Prose = ""


class EnumFrame(_Frame):
    """An enum."""

    kind: Literal["enum"]
    members: dict[str, Scalar] = Field(min_length=1)


class AliasFrame(_Frame):
    """A type alias defined by code."""

    kind: Literal["alias"]
    type: str


ClassFrame = Annotated[ModelFrame | EnumFrame | AliasFrame, Field(discriminator="kind")]


class SignatureFrame(_Frame):
    """A signature: inline (`text`) or the fields of a class.

    Attributes:
        text: `"text, topic -> score: int"`.
        fields: The fields, in order.
        name: The name of the class.
        instructions: The task; None for DSPy's default.
        classes: The classes of the REPL that it uses.
    """

    text: str | None = None
    fields: list[SignatureField] | None = None
    name: str = "StringSignature"
    instructions: Prose | None = None
    classes: dict[str, ClassFrame] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.text is None) == (self.fields is None):
            raise ValueError("a signature has either text or fields")
        if self.chars > MAX_TYPE_CHARS:
            raise ValueError(f"it has {self.chars:,} characters; at most {MAX_TYPE_CHARS:,} are allowed")
        return self

    @property
    def chars(self) -> int:
        """The number of characters without descriptions."""
        return _chars(self)

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return repr(beginning(self.text if self.text is not None else self.name, _SHOWN_CHARS))


class ModelOptions(_Frame):
    """Options of a module's model calls that code may set; not the model or address."""

    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_SIZE)] | None = None
    stop: str | Annotated[list[str], Field(max_length=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    rollout_id: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


class TurnOptions(_Frame):
    """Options that code may set for a module with turns."""

    max_iters: Annotated[int, Field(ge=1, le=_MAX_TURNS)] | None = None


class QueryFrame(_Frame):
    """`llm_query`, or a child RLM by `rlm_query`."""

    kind: Literal["query", "rlm_query"]


class _WrittenFrame(_Frame):
    """A frame with texts from code, without lone surrogates, which DSPy rejects."""

    @model_validator(mode="before")
    @classmethod
    def _cleaned(cls, frame: JsonValue) -> JsonValue:
        cleaned: JsonValue = without_media_marks(all_sendable(frame))
        return cleaned


class SubFrame(_WrittenFrame):
    """A declared sub."""

    kind: Literal["sub"]
    name: str


class AdHocFrame(_WrittenFrame):
    """A module written in the REPL."""

    kind: Literal["ad_hoc"]
    module: ModuleKind
    signature: SignatureFrame
    config: dict[str, Any] = {}
    tools: list[str] = []

    def options(self) -> dict[str, Any]:
        """Return the options of the module.

        Raises:
            InvalidInputs: If code may not set an option, or its value is invalid.
        """
        kind: type[_Frame] = ModelOptions if self.module in ("Predict", "ChainOfThought") else TurnOptions
        known = list(kind.model_fields)
        if unknown := sorted(self.config.keys() - set(known)):
            raise InvalidInputs(
                f"dspy.{self.module} takes a signature and {', '.join(known)} here, not {', '.join(unknown)}."
            )
        if self.tools and self.module not in AGENTS:
            raise InvalidInputs(f"dspy.{self.module} takes no tools; use dspy.ReAct(signature, tools=[...]).")
        try:
            return kind.model_validate(self.config).model_dump(exclude_unset=True, exclude_none=True)
        except ValidationError as error:
            raise InvalidInputs(f"Invalid option of dspy.{self.module}: {problems(error)}") from None


Target = Annotated[QueryFrame | SubFrame | AdHocFrame, Field(discriminator="kind")]
Part = Annotated[tuple[dict[str, Any], dict[str, str]], Field(strict=False)]
"""Values by field, and names of inputs of the run by field."""


class CallFrame(_Frame):
    """One call: its callee and its items.

    Attributes:
        to: The callee.
        items: One per answer.
        same: Values shared by all items.
        many: Whether the result is a list.
    """

    to: Target
    items: list[Part]
    same: Part = ({}, {})
    many: bool = True

    @property
    def called(self) -> str:
        """The callee, as code writes it."""
        to = self.to
        if isinstance(to, AdHocFrame):
            return f"dspy.{to.module}({to.signature.shown})"
        return to.name if isinstance(to, SubFrame) else {"query": "llm_query"}.get(to.kind, to.kind)


def refusal_of(error: ValidationError | RecursionError) -> InvalidInputs:
    """Return the error of an invalid frame; the message names the parts."""
    reason = problems(error) if isinstance(error, ValidationError) else "it is nested too deeply."
    return InvalidInputs(without_media_marks(all_sendable(f"Invalid call: {reason}")))


def problems(error: ValidationError) -> str:
    """Format pydantic's errors: the field and the reason, never a value."""
    if (count := error.error_count()) > _TOLD_PROBLEMS:
        return f"{count:,} values are invalid"
    found = error.errors(include_url=False, include_input=False, include_context=False)
    parts = [
        f"{'.'.join(map(str, part['loc']))}: {part['msg']}" if part["loc"] else part["msg"]
        for part in found[:_SHOWN_PROBLEMS]
    ]
    more = f" (and {len(found) - _SHOWN_PROBLEMS} more)" if len(found) > _SHOWN_PROBLEMS else ""
    return f"{'; '.join(parts)}{more}"
