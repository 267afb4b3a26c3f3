"""Identifies metrics by code and by the values that they hold or read, to reuse cached runs that they scored."""

from __future__ import annotations

import contextlib
import dis
import inspect
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import dspy

from rlm_dspy.redaction import lm_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Identity: TypeAlias = str | list["Identity"]
    """Nested texts that are the same in every process."""


@dataclass
class Identifier:
    """Identifies a metric; an identity contains no memory address.

    Attributes:
        unknown: The names of the types of objects that could not be identified.
    """

    unknown: list[str] = field(default_factory=list)
    _inside: frozenset[int] = field(default=frozenset(), repr=False)
    _globals: set[str] = field(default_factory=set, repr=False)

    def of(self, value: object) -> Identity:
        """Return the identity of a value; for a function its code, arguments, defaults and the values it reads."""
        if value is None or type(value) in (bool, int, float, complex, str, bytes):
            return repr(value)
        if id(value) in self._inside:
            return "itself"
        around, self._inside = self._inside, self._inside | {id(value)}
        try:
            return next(how for kind, how in _HOW if isinstance(value, kind))(self, value)
        finally:
            self._inside = around

    def _of_items(self, value: Any) -> Identity:
        if isinstance(value, dict):
            items: list[Identity] = [[self.of(name), self.of(item)] for name, item in value.items()]
        else:
            items = [self.of(item) for item in value]
        ordered = sorted(items, key=str) if isinstance(value, set | frozenset) else items
        return [_name(type(value)), ordered, self.of(getattr(value, "__dict__", None))]

    def _of_lm(self, lm: dspy.BaseLM) -> Identity:
        return [_name(type(lm)), self.of(lm_state(lm))]

    def _of_module(self, module: dspy.Module) -> Identity:
        return [self.of(type(module)), *(self._of_predictor(*each) for each in module.named_predictors())]

    def _of_predictor(self, name: str, predictor: dspy.Predict) -> Identity:
        return [name, self.of([predictor.signature.dump_state(), predictor.demos, predictor.config, predictor.lm])]

    def _of_function(self, function: FunctionType) -> Identity:
        held = [self._of_cell(cell) for cell in function.__closure__ or ()]
        read: list[Identity] = [[name, self._of_global(function, value)] for name, value in _globals_of(function)]
        defaults = self.of([function.__defaults__, function.__kwdefaults__])
        return [_name(function), source_of(function), _of_code(function.__code__), defaults, held, read]

    def _of_method(self, method: MethodType) -> Identity:
        return [self.of(method.__func__), self.of(method.__self__)]

    def _of_builtin(self, value: BuiltinFunctionType | ModuleType) -> Identity:
        return [value.__name__, self.of(getattr(value, "__self__", None))]

    def _of_cell(self, cell: Any) -> Identity:
        try:
            return self.of(cell.cell_contents)
        except ValueError:  # it has no value yet
            return ""

    def _of_global(self, function: FunctionType, value: object) -> Identity:
        """Return the identity of a global; its name if it has none or belongs to another module."""
        if isinstance(value, FunctionType | type):
            if value.__module__ != function.__module__ or _name(value) in self._globals:
                return _name(value)
            self._globals.add(_name(value))
        apart = Identifier(_inside=self._inside, _globals=self._globals)
        found = apart.of(value)
        return _name(type(value)) if apart.unknown else found

    def _of_class(self, cls: type) -> Identity:
        if isinstance(cls, type(dspy.Signature)):
            return [_name(cls), repr(cls)]
        codes: list[Identity] = [
            [name, _of_code(each.__code__)] for name, each in vars(cls).items() if isinstance(each, FunctionType)
        ]
        return [_name(cls), source_of(cls), codes]

    def _of_object(self, value: object) -> Identity:
        """Return the identity of an object: the content of its pickle."""
        call = getattr(type(value), "__call__", None)  # noqa: B004  # its code is read
        called = self._of_function(call) if isinstance(call, FunctionType) else ""
        try:
            how = value.__reduce_ex__(4)
            parts = how if isinstance(how, str) else [list(p) if hasattr(p, "__next__") else p for p in how]
            return [self.of(type(value)), called, self.of(parts)]
        except Exception:  # noqa: BLE001  # an object that cannot be pickled may raise anything
            self.unknown.append(_name(type(value)))
            return _name(type(value))


_HOW: tuple[tuple[Any, Callable[[Identifier, Any], Identity]], ...] = (
    ((list, tuple, dict, set, frozenset), Identifier._of_items),  # noqa: SLF001  # a method of this class, as are all of these
    (dspy.BaseLM, Identifier._of_lm),  # noqa: SLF001
    (dspy.Module, Identifier._of_module),  # noqa: SLF001
    (MethodType, Identifier._of_method),  # noqa: SLF001
    (FunctionType, Identifier._of_function),  # noqa: SLF001
    (type, Identifier._of_class),  # noqa: SLF001
    ((BuiltinFunctionType, ModuleType), Identifier._of_builtin),  # noqa: SLF001
    (object, Identifier._of_object),  # noqa: SLF001
)
"""The function that identifies each kind of value; the first that fits is used."""


def _globals_of(function: FunctionType) -> list[tuple[str, object]]:
    """Return the global variables that a function reads, by name."""
    names = sorted(set(_names_in(function.__code__)))
    return [(name, function.__globals__[name]) for name in names if name in function.__globals__]


def _names_in(code: CodeType) -> Iterator[str]:
    yield from (each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names_in(part)


def _of_code(code: CodeType) -> Identity:
    consts = [_of_code(part) if isinstance(part, CodeType) else _of_const(part) for part in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), consts]


def _of_const(value: object) -> Identity:
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _name(value: Callable[..., Any] | type) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def source_of(value: Callable[..., Any] | type) -> str:
    """Return the source of a function or class; empty if there is none."""
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(value)
    return ""
