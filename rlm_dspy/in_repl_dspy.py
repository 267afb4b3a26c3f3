"""`dspy` in the REPL: modules and signatures written there, on their way to the host, which makes and runs them.

Not imported: its source runs behind that of `in_repl`, in the same namespace.
"""

import dataclasses as _rlm_dataclasses
import enum as _rlm_enum
import inspect as _rlm_inspect
import re as _rlm_re
import sys as _rlm_sys
import types as _rlm_types
import typing as _rlm_typing

_RLM_BUILTIN = {
    kind: kind.__name__ for kind in (str, int, float, bool, bytes, list, dict, tuple, set, frozenset, object)
}


def _rlm_type(kind):
    """Return a type as JSON-like data; the host makes the same type of it."""
    if kind is None or kind is type(None):
        return "None"
    if kind is _rlm_typing.Any:
        return "Any"
    if isinstance(kind, str):
        return _rlm_type(eval(kind, globals()))
    origin, args = _rlm_typing.get_origin(kind), _rlm_typing.get_args(kind)
    if origin is _rlm_typing.Literal:
        return {"literal": [_rlm_plain(value) for value in args]}
    if origin is _rlm_typing.Union or origin is getattr(_rlm_types, "UnionType", None):
        return {"union": [_rlm_type(arg) for arg in args]}
    if origin is _rlm_typing.Annotated:
        return _rlm_type(args[0])
    if origin in _RLM_BUILTIN:
        return {"of": _RLM_BUILTIN[origin], "args": ["..." if a is ... else _rlm_type(a) for a in args]}
    if kind in _RLM_BUILTIN:
        return _RLM_BUILTIN[kind]
    if isinstance(kind, type):
        return _rlm_class(kind)
    raise TypeError("a signature in the REPL cannot have the type %r; use str, numbers, lists, dicts" % (kind,))


def _rlm_class(kind):
    if issubclass(kind, _rlm_enum.Enum):
        return {"enum": kind.__name__, "members": {m.name: _rlm_plain(m.value) for m in kind}}
    if kind.__module__ == "datetime":
        return kind.__name__
    if hasattr(kind, "model_fields"):
        fields = {
            name: {"type": _rlm_type(f.annotation), "required": f.is_required(), "desc": f.description or ""}
            for name, f in kind.model_fields.items()
        }
    elif _rlm_dataclasses.is_dataclass(kind) or hasattr(kind, "__annotations__"):
        hints = _rlm_typing.get_type_hints(kind)
        fields = {name: {"type": _rlm_type(hint), "required": True, "desc": ""} for name, hint in hints.items()}
    else:
        fields = {}
    if not fields:
        raise TypeError("%s has no annotated fields that a signature could use" % kind.__name__)
    return {"model": kind.__name__, "doc": _rlm_inspect.cleandoc(kind.__doc__ or ""), "fields": fields}


class _RlmField:
    def __init__(self, way, options):
        self.way, self.options = way, options


def _rlm_input_field(**options):
    return _RlmField("in", options)


def _rlm_output_field(**options):
    return _RlmField("out", options)


class _RlmInline:
    """`dspy.Signature("a -> b", "instructions")`."""

    def __init__(self, text, instructions=None):
        self.text, self.instructions = text, instructions

    def with_instructions(self, instructions):
        return _RlmInline(self.text, instructions)


class _RlmSignatureMeta(type):
    def __call__(cls, signature, instructions=None):
        return _RlmInline(signature, instructions)

    def with_instructions(cls, instructions):
        return type(cls)(cls.__name__, (cls,), {"__doc__": instructions})


class _RlmSignature(metaclass=_RlmSignatureMeta):
    __doc__ = None


def _rlm_signature(signature):
    """Return a signature (a string, a class, or what `dspy.Signature(...)` gave) as JSON-like data."""
    if isinstance(signature, str):
        signature = _RlmInline(signature)
    if isinstance(signature, _RlmInline):
        words = set(_rlm_re.findall(r"[A-Za-z_]\w*", signature.text))
        own = {word: globals()[word] for word in words if isinstance(globals().get(word), type)}
        types = {word: _rlm_type(kind) for word, kind in own.items() if kind.__module__ == "__main__"}
        return {"text": signature.text, "instructions": signature.instructions, "types": types}
    if not (isinstance(signature, type) and issubclass(signature, _RlmSignature)):
        raise TypeError("a signature is a string like 'text -> label: str', or a class on dspy.Signature")
    fields = []
    for owner in reversed(signature.__mro__):
        for name, kind in _rlm_annotations(owner).items():
            field = getattr(signature, name, None)
            if not isinstance(field, _RlmField):
                raise TypeError("%s.%s needs dspy.InputField() or dspy.OutputField()" % (owner.__name__, name))
            fields.append(_rlm_field(name, field, _rlm_type(kind)))
        for name, field in vars(owner).items():
            if isinstance(field, _RlmField) and name not in [known["name"] for known in fields]:
                fields.append(_rlm_field(name, field, "str"))
    doc = _rlm_inspect.cleandoc(signature.__doc__ or "")
    return {"name": signature.__name__, "instructions": doc or None, "fields": fields}


def _rlm_annotations(owner):
    return _rlm_inspect.get_annotations(owner) if owner not in (object, _RlmSignature) else {}


def _rlm_field(name, field, kind):
    desc = field.options.get("desc") or field.options.get("description")
    return {"name": name, "way": field.way, "type": kind, "desc": desc}


def _rlm_input_names(sent):
    if "fields" in sent:
        return [field["name"] for field in sent["fields"] if field["way"] == "in"]
    names = _rlm_re.split(r",(?![^\[\(]*[\]\)])", sent["text"].partition("->")[0])
    return [name.partition(":")[0].strip() for name in names if name.strip()]


def _rlm_tool_name(tool):
    if isinstance(tool, str):
        return tool
    found = [name for name in _rlm_given["tools"] if globals().get(name) is tool]
    name = found[0] if found else getattr(tool, "__name__", str(tool))
    if name not in _rlm_given["tools"]:
        raise TypeError(
            "tools= takes the tools of this REPL (%s), not functions written here"
            % (", ".join(_rlm_given["tools"]) or "there are none")
        )
    return name


class _RlmModule(_RlmCallable):
    """A module written in the REPL and run on the host."""

    _rlm_kind = ""

    def __init__(self, signature, tools=(), **config):
        sent = _rlm_signature(signature)
        to = {"kind": "ad_hoc", "module": self._rlm_kind, "signature": sent, "config": _rlm_plain(config)}
        to["tools"] = [_rlm_tool_name(tool) for tool in tools]
        names = _rlm_input_names(sent)
        usage = "dspy.%s(...)(%s)" % (self._rlm_kind, ", ".join(name + "=..." for name in names))
        super().__init__(to, names, usage, positional=False)


class _RlmProgram:
    """`dspy.Module`: programs of several modules; its own code runs in the REPL."""

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    async def acall(self, *args, **kwargs):
        if hasattr(self, "aforward"):
            return await self.aforward(*args, **kwargs)
        return await _rlm_await(self, *args, **kwargs)


def _rlm_prediction(**fields):
    return _RlmRecord("Prediction", **fields)


def _rlm_missing(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        "the REPL's dspy has Predict, ChainOfThought, ReAct, RLM, Signature, InputField, OutputField, Module and "
        "Prediction, not %r" % name
    )


def _rlm_make_dspy():
    module = _rlm_types.ModuleType("dspy", "Modules written in the REPL; their model calls run on the host.")
    for kind in ("Predict", "ChainOfThought", "ReAct", "RLM"):
        setattr(module, kind, type(kind, (_RlmModule,), {"_rlm_kind": kind, "__module__": "dspy"}))
    module.Signature, module.Module, module.Prediction = _RlmSignature, _RlmProgram, _rlm_prediction
    module.InputField, module.OutputField = _rlm_input_field, _rlm_output_field
    module.__getattr__ = _rlm_missing
    return module


def _rlm_install(module):
    """Make `import dspy` give it: in the host's process for this REPL's code alone."""
    if "rlm_dspy" not in _rlm_sys.modules:
        _rlm_sys.modules["dspy"] = module
        return
    names = globals()["__builtins__"]
    names = dict(names if isinstance(names, dict) else vars(names))  # a copy: it may be the host's own
    real = names["__import__"]

    def importing(name, globals=None, locals=None, fromlist=(), level=0):
        return module if name == "dspy" and not level else real(name, globals, locals, fromlist, level)

    names["__import__"] = importing
    globals()["__builtins__"] = names


dspy = _rlm_make_dspy()
_rlm_install(dspy)
