"""Defines the host's representations of objects and namedtuples from the REPL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Record(dict[str, Any]):
    """The fields of an object from the REPL, or of the REPL's stand-in for a host object.

    Attributes:
        name: The name of its class.
        kind: `model`, `dataclass` or `prediction`.
    """

    def __init__(self, kind: str, name: str, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.kind = kind
        self.name = name

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.items())})"


class Row(tuple[Any, ...]):  # noqa: SLOT001 (it has a name and fields)
    """The values of a namedtuple from the REPL, in order.

    Attributes:
        name: The name of its class.
    """

    name: str
    _fields: tuple[str, ...]

    @classmethod
    def of(cls, name: str, fields: Mapping[str, Any]) -> Row:
        """Return a row of values with these names."""
        row = cls(fields.values())
        row.name, row._fields = name, tuple(fields)
        return row

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"
