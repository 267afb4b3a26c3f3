"""Parses the types that code in a REPL uses, by a closed grammar: only listed names are known.

The text is parsed, never evaluated: nothing is imported, resolved or called.
"""

from __future__ import annotations

import ast
import datetime as dt
import decimal
import enum
import keyword
import types
import typing
import unicodedata
from collections import abc
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union, cast

import dspy
from pydantic import BaseModel, Field, PydanticUserError, TypeAdapter, ValidationError, create_model
from pydantic_core import SchemaError

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.repl.value_codec import without_media_marks
from rlm_dspy.subcalls.frames import MAX_TYPE_CHARS, AliasFrame, Constraints, EnumFrame, ModelFrame, problems
from rlm_dspy.text import beginning, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue
    from typing_extensions import TypeForm

    from rlm_dspy.subcalls.frames import ClassFrame, FieldFrame

MAX_DEPTH = 20
"""Maximum nesting depth of types and classes."""
MAX_PARTS = 5_000
"""Maximum number of types in a signature, nested ones and expanded names included."""
MAX_PATTERNS = 16
"""Maximum number of patterns in a signature: a compiled one takes up to 10 MB as long as the signature is kept."""
_REASON_CHARS = 300

_PLAIN: dict[str, Any] = {
    **{kind.__name__: kind for kind in (str, int, float, bool, bytes, list, dict, tuple, set, frozenset)},
    **{kind.__name__: kind for kind in (dt.date, dt.datetime, dt.time, dt.timedelta, decimal.Decimal)},
    **{name: getattr(dspy, name) for name in ("Image", "Audio", "File")},
    "object": Any,
    "Any": Any,
    "None": None,
    "NoneType": None,
}
_GENERIC: dict[str, tuple[Any, int | None]] = {
    "list": (list, 1),
    "set": (set, 1),
    "frozenset": (frozenset, 1),
    "dict": (dict, 2),
    "tuple": (tuple, None),
    "Sequence": (abc.Sequence, 1),
    "Mapping": (abc.Mapping, 2),
    "Union": (Union, None),
    "Optional": (Optional, 1),
}
"""Generic types with their number of arguments; None for any number."""
_TYPING = {"List": "list", "Set": "set", "FrozenSet": "frozenset", "Dict": "dict", "Tuple": "tuple"}
_MODULES = ("typing", "datetime", "decimal", "dspy", "pydantic")
_NUMBERS = (int, float, decimal.Decimal)
_TIMES = (dt.date, dt.datetime, dt.time, dt.timedelta)
_SIZED = (str, bytes, list, set, frozenset, dict, tuple)
_SUITED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("gt", "ge", "lt", "le"), (*_NUMBERS, *_TIMES)),
    "multiple_of": _NUMBERS,
    **dict.fromkeys(("min_length", "max_length"), _SIZED),
    "pattern": (str,),
    **dict.fromkeys(("max_digits", "decimal_places"), (decimal.Decimal,)),
    "allow_inf_nan": (float, decimal.Decimal),
}
"""The types that each constraint applies to; an unlisted one applies to all."""


def check_name(name: str, what: str, *, taken: type | None = None) -> str:
    """Check and return a name for a field, a member or a class.

    Args:
        name: The name.
        what: What it names, for the message.
        taken: A class whose attributes must not be shadowed.

    Raises:
        InvalidInputs: If it is not a plain identifier, or is reserved by this class.
    """
    plain = name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name
    if not plain or name.startswith("_"):
        raise InvalidInputs(
            f"Invalid name of {what}: {beginning(name)!r}; use a Python identifier without a leading underscore"
        )
    if taken is not None and hasattr(taken, name):
        raise InvalidInputs(f"Invalid name of {what}: {name!r} is reserved; use another, e.g. {name}_.")
    return name


class TypeReader:
    """Reads types.

    Args:
        classes: The classes of the REPL by name; each is built once, when first used.
    """

    def __init__(self, classes: Mapping[str, ClassFrame]) -> None:
        self._classes = classes
        self._built: dict[str, tuple[Any, int]] = {}  # each class with its number of parts
        self._open: list[str] = []
        self._patterns = self._parts = 0

    def read(self, text: str, depth: int = 0) -> Any:
        """Return the type that a text names.

        Raises:
            InvalidInputs: If it is not in the grammar; the message shows only the text.
        """
        _check_length(text)
        try:
            node = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise InvalidInputs(f"{beginning(text)!r} is not a type") from None
        return self.of(node, depth)

    def of(self, node: ast.expr, depth: int = 0) -> Any:
        """Return the type that a node of a parsed annotation names.

        Raises:
            InvalidInputs: If it is not in the grammar.
        """
        self._count(1)
        if depth > MAX_DEPTH:
            raise InvalidInputs(f"types may be nested at most {MAX_DEPTH} levels deep")
        match node:
            case ast.Constant(value=None):
                return None
            case ast.Constant(value=str(text)):
                return self.read(text, depth + 1)
            case ast.BinOp(op=ast.BitOr()):
                kinds = tuple(self.of(part, depth + 1) for part in _alternatives(node))
                return Union[kinds]  # noqa: UP007  # known only now
            case ast.Subscript(value=base, slice=inside):
                arguments = inside.elts if isinstance(inside, ast.Tuple) else [inside]
                return self._generic(_name_of(base), arguments, depth + 1)
            case _:
                return self._named(_name_of(node), depth)

    def _count(self, parts: int) -> None:
        self._parts += parts
        if self._parts > MAX_PARTS:
            raise InvalidInputs(f"its types have more than {MAX_PARTS:,} parts")

    def _named(self, name: str, depth: int) -> Any:
        if name in self._classes:
            return self._class(name, depth)
        name = _TYPING.get(name, name)
        if name in _PLAIN:
            return _PLAIN[name]
        if name in ("Sequence", "Mapping"):
            return _GENERIC[name][0]
        raise InvalidInputs(
            f"unknown type {beginning(name)!r}; use str, int, float, bool, bytes, list, dict, tuple, set, date, "
            "datetime, Decimal, Literal, Optional, unions of these, or a class or an enum written in the REPL"
        )

    def _generic(self, name: str, arguments: list[ast.expr], depth: int) -> Any:
        name = _TYPING.get(name, name)
        if name == "Literal" and arguments:
            return Literal[tuple(_choice(argument) for argument in arguments)]
        if name == "Annotated":
            return self._annotated(arguments, depth)
        if name not in _GENERIC:
            raise InvalidInputs(f"{beginning(name)!r} takes no types in brackets")
        generic, wanted = _GENERIC[name]
        variadic = name == "tuple" and [getattr(part, "value", None) is ... for part in arguments] == [False, True]
        kinds = [self.of(argument, depth) for argument in (arguments[:1] if variadic else arguments)]
        if wanted is not None and len(kinds) != wanted:
            raise InvalidInputs(f"{name}[...] takes {wanted} type(s), not {len(kinds)}")
        if not kinds and name != "tuple":
            raise InvalidInputs(f"{name}[...] is empty")
        return generic[(*kinds, ...)] if variadic else generic[kinds[0] if len(kinds) == 1 else tuple(kinds)]

    def _annotated(self, arguments: list[ast.expr], depth: int) -> Any:
        kind = self.of(arguments[0], depth)
        for argument in arguments[1:]:
            kind = self._constrained(kind, _field_call(argument))
        return kind

    def _constrained(self, kind: TypeForm[Any], constraints: Constraints) -> TypeForm[Any]:
        self._patterns += constraints.pattern is not None
        if self._patterns > MAX_PATTERNS:
            raise InvalidInputs(f"a signature may have at most {MAX_PATTERNS} patterns")
        return constrained(kind, constraints)

    def _class(self, name: str, depth: int) -> Any:
        if name in self._open:
            raise InvalidInputs(f"the class {beginning(name)!r} contains itself; use dict or list[dict] instead")
        if name in self._built:
            self._count(self._built[name][1])
            return self._built[name][0]
        check_name(name, "a class")
        self._open.append(name)
        before = self._parts
        built = self._build(name, self._classes[name], depth + 1)
        self._open.pop()
        if not isinstance(self._classes[name], AliasFrame):  # an expanded name counts at each use
            self._built[name] = built, self._parts - before
        return built

    def _build(self, name: str, frame: ClassFrame, depth: int) -> Any:
        if isinstance(frame, EnumFrame):
            members = {
                check_name(member, f"a member of {name}", taken=type): v for member, v in frame.members.items()
            }
            return enum.Enum(name, members)
        if isinstance(frame, ModelFrame):
            fields: dict[str, Any] = {
                check_name(field, f"a field of {name}", taken=BaseModel): self.field(of, depth)
                for field, of in frame.fields.items()
            }
            return create_model(name, __doc__=frame.doc or None, **fields)
        return self.read(frame.type, depth)

    def field(self, frame: FieldFrame, depth: int = 0) -> tuple[Any, Any]:
        """Return the type and `Field` of a class field.

        Raises:
            InvalidInputs: If they are not in the grammar.
        """
        kind = self._constrained(self.read(frame.type, depth), frame.constraints)
        default = ... if frame.required else frame.default
        return kind, Field(default, description=frame.desc or None, validate_default=True)


Parts = list[tuple[str, ast.expr]]
"""Names with their annotations: `str` if there is none."""


def signature_parts(text: str) -> tuple[Parts, Parts]:
    """Return inputs and outputs of an inline signature.

    Raises:
        InvalidInputs: If it is not of the form `inputs -> outputs`.
    """
    _check_length(text)
    inputs, arrow, outputs = text.partition("->")
    if not arrow or "->" in outputs:
        raise InvalidInputs("it must contain exactly one '->'")
    return _fields(inputs), _fields(outputs)


def _fields(text: str) -> Parts:
    try:
        body = ast.parse(f"def _({text}): pass").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        body = []
    if (
        len(body) == 1
        and isinstance(function := body[0], ast.FunctionDef)
        and isinstance(function.body[0], ast.Pass)
    ):
        args = function.args
        if not (
            args.posonlyargs or args.vararg or args.kwonlyargs or args.kwarg or args.defaults or function.returns
        ):
            return [(argument.arg, argument.annotation or ast.Name("str")) for argument in args.args]
    raise InvalidInputs(f"{beginning(text.strip())!r} is not a list of fields")


def constrained(kind: TypeForm[Any], constraints: Constraints) -> TypeForm[Any]:
    """Return a type with constraints.

    Raises:
        InvalidInputs: If they do not apply to it.
    """
    given: dict[str, Any] = constraints.model_dump(exclude_none=True)
    parts = [part for part in _members(kind) if part is not None and part is not type(None)] or [Any]
    for name, value in given.items():
        suited = _SUITED.get(name)
        if suited and not all((typing.get_origin(part) or part) in suited for part in parts):
            raise InvalidInputs(f"{name}={beginning(str(value))} does not apply to this type")
        if name in ("gt", "ge", "lt", "le"):
            given[name] = _bound(name, value, parts)
    return cast("TypeForm[Any]", Annotated[kind, Field(**given)]) if given else kind


def check_usable(kind: TypeForm[Any]) -> None:
    """Check that pydantic can validate a type and describe it to a model.

    Raises:
        InvalidInputs: If not, e.g. because a pattern does not compile.
    """
    try:
        TypeAdapter(kind).json_schema()
    except SchemaError as error:  # an invalid pattern, which it quotes, or number
        raise InvalidInputs(one_line(str(error), _REASON_CHARS)) from None
    except (TypeError, ValueError, RecursionError, PydanticUserError):
        raise InvalidInputs("pydantic cannot validate values of this type") from None


def _bound(name: str, value: JsonValue, parts: list[Any]) -> Any:
    """Convert a bound to the type that it bounds."""
    kind: Any = Union[tuple(parts)]  # noqa: UP007  # its parts are known only now
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        raise InvalidInputs(f"{name}={beginning(str(value))} is not a value of this type") from None


def _members(kind: TypeForm[Any]) -> list[Any]:
    """Return the types of a union without constraints; for another type the type itself."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [member for argument in typing.get_args(kind) for member in _members(argument)]
    return [kind]


def _field_call(node: ast.expr) -> Constraints:
    """Return the constraints in `Field(ge=1)`.

    Raises:
        InvalidInputs: If it is not such a call.
    """
    match node:
        case ast.Call(func=func, args=[], keywords=keywords) if _name_of(func) == "Field":
            given = {str(word.arg): _literal(word.value) for word in keywords if word.arg != "description"}
            try:
                return Constraints.model_validate(given)
            except ValidationError as error:
                raise InvalidInputs(f"Field(...): {problems(error)}") from None
    raise InvalidInputs("Annotated takes Field(...) with plain numbers and strings, e.g. Field(ge=1, le=5)")


def _literal(node: ast.expr) -> str | int | float | bool | None:
    match node:
        case ast.Constant(value=None | str() | bool() | int() | float() as value):
            plain: str | int | float | bool | None = without_media_marks(value)  # escapes may hide a mark
            return plain
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(
            value, bool
        ):
            return -value
    raise InvalidInputs("only plain strings, numbers, True, False and None are allowed")


def _choice(node: ast.expr) -> Any:
    if isinstance(value := _literal(node), float):
        raise InvalidInputs("Literal takes strings, whole numbers, True, False and None")
    return value


def _alternatives(node: ast.expr) -> list[ast.expr]:
    """Return the parts of `a | b | c`, which parses as `(a | b) | c`."""
    parts: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts.insert(0, node.right)
        node = node.left
    return [node, *parts]


def _name_of(node: ast.expr) -> str:
    """Return a name without its module: `date` for `datetime.date`.

    Raises:
        InvalidInputs: If it is not a name.
    """
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise InvalidInputs(f"an expression ({type(node).__name__}) is not a type")
    return parts[0] if len(parts) == 1 and node.id in _MODULES else ".".join([node.id, *parts])


def _check_length(text: str) -> None:
    if len(text) > MAX_TYPE_CHARS:
        raise InvalidInputs(f"it has {len(text):,} characters; at most {MAX_TYPE_CHARS:,} are allowed")
