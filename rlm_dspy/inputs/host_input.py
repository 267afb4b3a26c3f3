"""Defines the base class of inputs that stay on the host: an object in the REPL asks for parts of them."""

from __future__ import annotations

import uuid
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic_core import core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler


class HostInput:
    """An input such as `Files` or `Table`. In a signature, its class is the type of its field."""

    usage: ClassVar[str]
    """Its use in code, for the prompt; `{0}` is its name."""
    as_text: ClassVar[str]
    """Code that returns it as a text, for calls that take only text."""

    @cached_property
    def key(self) -> str:
        """The key of this object in REPLs."""
        return uuid.uuid4().hex[:12]

    @property
    def about(self) -> str:
        """Its description for the model, on one line of bounded length."""
        raise NotImplementedError

    @property
    def total(self) -> int:
        """Its size in bytes."""
        raise NotImplementedError

    def stand_in(self) -> dict[str, Any]:
        """Return the arguments, besides the key, of the class of the object in the REPL."""
        raise NotImplementedError

    def digest(self) -> tuple[int, str]:
        """Return its size in bytes, and a SHA-256 in hexadecimal that identifies it."""
        raise NotImplementedError

    def of_a_run(self) -> Self:
        """Return the same input for one run."""
        return self

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def toDict(self) -> str:  # noqa: N802  # DSPy asks for this name when it saves examples
        """Return the short form, for saved examples."""
        return repr(self)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Self], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Accept only an object of this class, because a path may come from a model. Write the short form."""
        return core_schema.is_instance_schema(
            cls, serialization=core_schema.plain_serializer_function_ser_schema(repr)
        )
