"""Declares subs (signatures and modules that code calls by name), and describes the interface of a callee."""

from __future__ import annotations

import functools
import inspect
import keyword
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import dspy
from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import PydanticUndefined

from rlm_dspy.concurrency.async_forms import has_forward
from rlm_dspy.repl.coercion import type_of
from rlm_dspy.repl.signature_reader import check_signature
from rlm_dspy.repl.tools import RESERVED, SETTINGS
from rlm_dspy.repl.type_names import bare, consists_of, name_of, shown_default
from rlm_dspy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pydantic import JsonValue
    from pydantic.fields import FieldInfo
    from typing_extensions import TypeForm

    from rlm_dspy.approval.reviewer import OnCode, OnSubmit, OnTool
    from rlm_dspy.cache import SubCallCache
    from rlm_dspy.grounding import Grounding
    from rlm_dspy.limits import Limits

    Sub: TypeAlias = str | type[dspy.Signature] | dspy.Module
    Given: TypeAlias = list[Sub] | dict[str, Sub] | None
    Factory: TypeAlias = Callable[[], dspy.CodeInterpreter]

_INLINE = "StringSignature"  # DSPy's name for a signature without its own class
_REASONING = "reasoning"
_MAX_DOC_CHARS = 300


class Subs(dspy.Module):
    """Holds the declared subs as attributes, so that their predictors are named `subs.<name>`."""

    def names(self) -> list[str]:
        """Return the names of the subs, in declaration order."""
        return [name for name, value in vars(self).items() if isinstance(value, dspy.Module)]


def make_subs(given: Given, inputs: Collection[str], tools: Collection[str]) -> Subs:
    """Validate the declared subs and return them as one `Subs` module.

    Args:
        given: A list of signature classes and modules, or a dict of names to these or to inline signatures;
            None for no subs.
        inputs: The input fields of the RLM, whose names are reserved.
        tools: The tools, likewise.

    Raises:
        TypeError: If something is neither a signature nor a module.
        ValueError: If a name is missing, taken, or given twice.
    """
    subs = Subs()
    for name, value in _named(given):
        module = dspy.Predict(check_signature(value)) if isinstance(value, str | type) else value
        if not isinstance(module, dspy.Module):
            raise TypeError(
                f"Invalid sub {name!r}: it must be a dspy.Signature class or a dspy.Module, not {value!r}."
            )
        _check_name(name, subs, inputs, tools)
        _check_fields(name, module)
        setattr(subs, name, module)
    return subs


def _named(given: Given) -> list[tuple[str, Sub]]:
    if given is None:
        return []
    if isinstance(given, dict):
        return list(given.items())
    if not isinstance(given, list | tuple):
        raise TypeError(
            f"subs must be a list of signatures and modules, or a dict of them by name, not {given!r}."
        )
    return [(_name_of(value), value) for value in given]


def _name_of(value: Sub) -> str:
    own = value.signature if isinstance(value, dspy.Predict) else value
    kind = own if isinstance(own, type) else type(own)
    name = _INLINE if isinstance(value, str | dspy.ChainOfThought) else kind.__name__
    if name == _INLINE:
        raise ValueError(f"Invalid sub {value!r}: it has no name. Pass a dict: subs={{'name': ...}}.")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _check_name(name: str, subs: Subs, inputs: Collection[str], tools: Collection[str]) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"Invalid sub name {name!r}: it must be a Python identifier.")
    taken = {
        "a name of the REPL": name in RESERVED or name.startswith("_"),
        "an input field": name in inputs,
        "a tool": name in tools,
        "another sub": name in vars(subs) and isinstance(vars(subs)[name], dspy.Module),
        "a role of the run": name in {"act", "query", "extract", "fold", "ad_hoc", "rlm"},
    }
    taken["an attribute of dspy.Module"] = not any(taken.values()) and hasattr(subs, name)
    if clash := [what for what, true in taken.items() if true]:
        raise ValueError(f"Invalid sub name {name!r}: it is {clash[0]}. Rename it: subs={{'other_name': ...}}.")


def _check_fields(name: str, module: dspy.Module) -> None:
    """Check that no input is also a setting: code in the REPL could choose an LM."""
    signature = signature_of(module)
    known = isinstance(module, dspy.Predict | dspy.ChainOfThought | dspy.ReAct | dspy.ReActV2)
    if known and (clash := sorted(SETTINGS & set(signature.input_fields))):
        raise ValueError(
            f"Invalid sub {name!r}: {type(module).__name__} reads {', '.join(clash)} as a setting, not as an "
            "input. Rename the input fields."
        )


class Cascade(Protocol):
    """What sub-calls are to know of the `Compute` of a module."""

    @property
    def cheap_lm(self) -> dspy.BaseLM | None:
        """The LM that is asked first."""


class Program(Protocol):
    """The running module as the modules below it see it; `RLM` is one."""

    signature: type[dspy.Signature]
    limits: Limits
    tools: dict[str, dspy.Tool]
    subs: Subs
    act: Any
    query: dspy.Predict
    sub_lm: dspy.BaseLM | None
    cache: SubCallCache | bool
    interpreter_factory: Factory | None
    refuse_blind_submit: bool
    grounding: Grounding
    compute: Cascade
    on_code: OnCode | None
    on_tool: OnTool | None
    on_submit: OnSubmit | None

    def child(
        self, interpreter_factory: Factory, signature: str | type[dspy.Signature], max_iters: int | None = None
    ) -> dspy.Module:
        """Return the module of a sub-call: the same with these changes."""


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a callee.

    Attributes:
        name: How code calls it.
        inputs: The type of each input field; `Any` if unknown.
        defaults: The defaults of optional ones.
        outputs: The type of each output field; None if unknown before the call.
        doc: Its description in one line.
        whole: Whether the answer is always a record, even with one field.
    """

    name: str
    inputs: dict[str, Any]
    outputs: dict[str, Any] | None
    doc: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    whole: bool = False

    @property
    def call(self) -> str:
        """How code calls it: `claims(passage: str, most: int = 3)`."""
        parts = []
        for name, kind in self.inputs.items():
            typed = name if kind is Any else f"{name}: {name_of(kind)}"
            default = f" = {shown_default(self.defaults[name])}" if name in self.defaults else ""
            parts.append(f"{typed}{default}")
        return f"{self.name}({', '.join(parts)})"

    @property
    def gives(self) -> str:
        """The result's type: `list[str]`, or the fields of a record."""
        if self.outputs is None:
            return ""
        if len(self.outputs) == 1 and not self.whole:
            return name_of(next(iter(self.outputs.values())))
        fields = (f"{name}: {name_of(kind)}" for name, kind in self.outputs.items())
        return f"record({', '.join(fields)})"

    @property
    def types(self) -> str:
        """The fields of its pydantic models and enums: code passes dicts for models, and gets records."""
        return consists_of([*self.inputs.values(), *(self.outputs or {}).values()], "record")

    @functools.cached_property
    def stub(self) -> str:
        """Its call and result type."""
        return f"{self.call} -> {self.gives}" if self.gives else self.call

    @functools.cached_property
    def schemas(self) -> list[dict[str, JsonValue] | str]:
        """The JSON schemas of its types and constraints, down to the fields of classes."""
        kinds = [*self.inputs.values(), *(self.outputs or {}).values()]
        return [_schema(kind) for kind in kinds]

    @functools.cached_property
    def constrained(self) -> dict[str, Any]:
        """The types of the outputs that have constraints."""
        return {name: kind for name, kind in (self.outputs or {}).items() if bare(kind) != kind}


def interface_of(name: str, module: dspy.Module, *, whole: bool = False) -> Interface:
    """Return a module's inputs and outputs, from its signature or else its `forward`."""
    signature = signature_of(module)
    if signature is None:
        return _of_forward(name, module)
    plain = isinstance(module, dspy.ChainOfThought) and not whole  # its reasoning is not a requested output
    return _of_signature(name, signature, plain=plain, whole=whole)


@functools.lru_cache(maxsize=256)
def _of_signature(name: str, signature: type[dspy.Signature], *, plain: bool, whole: bool) -> Interface:
    outputs = {key: _output_type(of) for key, of in signature.output_fields.items()}
    inputs = signature.input_fields
    return Interface(
        name=name,
        inputs={key: type_of(of) for key, of in inputs.items()},
        defaults={key: of.default for key, of in inputs.items() if of.default is not PydanticUndefined},
        outputs={key: kind for key, kind in outputs.items() if not (plain and key == _REASONING)},
        doc=one_line(signature.instructions, _MAX_DOC_CHARS),
        whole=whole,
    )


def _schema(kind: TypeForm[Any]) -> dict[str, JsonValue] | str:
    try:
        return TypeAdapter(kind).json_schema()
    except (PydanticUserError, TypeError, ValueError):  # a type that exists only in its program
        return name_of(kind)


def _output_type(of: FieldInfo) -> Any:
    """Return the type of an output field; with None if its default is None."""
    kind: Any = type_of(of)
    return kind if of.is_required() or of.default is not None else kind | None


def signature_of(module: dspy.Module) -> Any:
    """Return the signature of a module that has one; else None."""
    owner = module.predict if isinstance(module, dspy.ChainOfThought) else module
    signature = getattr(owner, "signature", None)
    return signature if isinstance(signature, type) and issubclass(signature, dspy.Signature) else None


def _of_forward(name: str, module: dspy.Module) -> Interface:
    method = "forward" if has_forward(module) else "aforward"
    forward: Callable[..., Any] = object.__getattribute__(module, method)  # DSPy warns on access
    try:
        own = inspect.signature(forward, eval_str=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        own = inspect.signature(forward)
    named = [p for p in own.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    inputs = {p.name: Any if _untyped(p.annotation) else p.annotation for p in named}
    defaults = {p.name: p.default for p in named if p.default is not p.empty}
    doc = type(module).__doc__ if type(module).__doc__ != dspy.Module.__doc__ else ""
    return Interface(
        name=name, inputs=inputs, defaults=defaults, outputs=None, doc=one_line(doc or "", _MAX_DOC_CHARS)
    )


def _untyped(annotation: TypeForm[Any]) -> bool:
    return annotation is inspect.Parameter.empty or isinstance(annotation, str)
