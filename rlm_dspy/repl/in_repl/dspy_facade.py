"""Provides `dspy` in the REPL: the host builds and runs the signatures and modules that are written here.

Not imported: its source runs after `functions.py`, in the same namespace.
"""

import base64 as _rlm_base64
import collections.abc as _rlm_abc
import dataclasses as _rlm_dataclasses
import enum as _rlm_enum
import inspect as _rlm_inspect
import pathlib as _rlm_pathlib
import re as _rlm_re
import sys as _rlm_sys
import types as _rlm_types
import typing as _rlm_typing

_RLM_CONTAINERS = (list, dict, tuple, set, frozenset)
_RLM_NAMED = (str, int, float, bool, bytes, object, *_RLM_CONTAINERS)
_RLM_ORIGINS = (*_RLM_CONTAINERS, _rlm_abc.Sequence, _rlm_abc.Mapping)
_RLM_LIBRARIES = ("datetime", "decimal")
_RLM_CONSTRAINTS = (
    *("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern"),
    *("max_digits", "decimal_places", "allow_inf_nan", "strict"),
)


class _RlmTypes:
    """Writes types as text and classes as their fields, from which the host builds the same types."""

    def __init__(self):
        self.classes, self._kinds = {}, {}

    def text(self, kind):
        """Return a type as text."""
        if kind in (None, type(None)):
            return "None"
        if kind is _rlm_typing.Any:
            return "Any"
        if isinstance(kind, (str, _rlm_typing.ForwardRef)):
            return self._forward(kind if isinstance(kind, str) else kind.__forward_arg__)
        origin, args = _rlm_typing.get_origin(kind), _rlm_typing.get_args(kind)
        if origin is _rlm_typing.Literal:
            return "Literal[%s]" % ", ".join(repr(_rlm_plain(value)) for value in args)
        if origin is _rlm_typing.Union or origin is getattr(_rlm_types, "UnionType", None):
            return "Union[%s]" % ", ".join(self.text(arg) for arg in args)
        if origin is _rlm_typing.Annotated:
            return self._annotated(args[0], args[1:])
        if origin in _RLM_ORIGINS:
            inside = ", ".join("..." if arg is ... else self.text(arg) for arg in args)
            return "%s[%s]" % (origin.__name__, inside or "()")
        if origin is None and hasattr(kind, "__supertype__"):  # NewType
            return self.text(kind.__supertype__)
        if isinstance(kind, type):
            return self._class(kind)
        raise _rlm_no_type(kind)

    def _forward(self, text):
        try:
            kind = eval(text, {**vars(_rlm_typing), **globals()})
        except Exception:
            raise TypeError("%r is not a type in this REPL" % text) from None
        return self.text(kind)

    def _annotated(self, kind, metadata):
        metadata = _rlm_constraints(metadata)
        fields = ", ".join("%s=%r" % item for item in metadata.items())
        return "Annotated[%s, Field(%s)]" % (self.text(kind), fields) if metadata else self.text(kind)

    def named(self, name, kind):
        """Describe a type under the name that code gave it."""
        text = self.text(kind)
        if text != name:
            self._claim(name, kind)
            self.classes[name] = {"kind": "alias", "type": text}

    def _claim(self, name, kind):
        if self._kinds.setdefault(name, kind) is not kind:
            raise TypeError("two types in one signature are named %s; rename one" % name)

    def _class(self, kind):
        if kind in _RLM_NAMED or kind.__module__ in _RLM_LIBRARIES or issubclass(kind, _RlmMediaType):
            return kind.__name__
        name = kind.__name__.lstrip("_") or "Class"
        self._claim(name, kind)
        if name not in self.classes:
            self.classes[name] = None  # a class may name itself
            self.classes[name] = self._described(kind)
        return name

    def _described(self, kind):
        if issubclass(kind, _rlm_enum.Enum):
            return {"kind": "enum", "members": {m.name: _rlm_plain(m.value) for m in kind}}
        if hasattr(kind, "model_fields"):
            fields = {name: self._of_model(field) for name, field in kind.model_fields.items()}
        else:
            fields = self._of_annotations(kind)
        if not fields:
            raise _rlm_no_type(kind)
        return {"kind": "model", "doc": _rlm_inspect.cleandoc(kind.__doc__ or ""), "fields": fields}

    def _of_model(self, field):
        frame = {"type": self.text(field.annotation), "desc": field.description or ""}
        frame["constraints"] = _rlm_constraints(field.metadata)
        if not field.is_required():
            frame.update(required=False, default=_rlm_plain(field.get_default(call_default_factory=True)))
        return frame

    def _of_annotations(self, kind):
        optional, missing = getattr(kind, "__optional_keys__", ()), _rlm_dataclasses.MISSING
        defaults = {**getattr(kind, "_field_defaults", {})}
        for field in _rlm_dataclasses.fields(kind) if _rlm_dataclasses.is_dataclass(kind) else ():
            default = field.default if field.default_factory is missing else field.default_factory()
            if default is not missing:
                defaults[field.name] = default
        try:
            hints = _rlm_typing.get_type_hints(kind, {**vars(_rlm_typing), **globals()}, include_extras=True)
        except NameError as error:
            raise TypeError("%s: %s" % (kind.__name__, error)) from None
        fields = {}
        for name, hint in hints.items():
            fields[name] = {"type": self.text(hint)}
            if name in defaults:
                fields[name].update(required=False, default=_rlm_plain(defaults[name]))
            elif name in optional:
                fields[name].update(required=False, type="Union[%s, None]" % fields[name]["type"])
        return fields


def _rlm_no_type(kind):
    name = kind.__name__ if isinstance(kind, type) else "an object of the type %s" % type(kind).__name__
    return TypeError(
        "a signature in the REPL cannot have the type %s; use str, numbers, lists, dicts, or a class with "
        "annotated fields" % name
    )


def _rlm_constraints(metadata):
    """Return the constraints of pydantic's `Field` and of annotated_types as plain values."""
    found = {}
    for part in metadata:
        if isinstance(part, str):  # a remark
            continue
        said = {name: getattr(part, name, None) for name in _RLM_CONSTRAINTS}
        inner = getattr(part, "metadata", ())
        said = {name: value for name, value in said.items() if value is not None}
        if not said and not inner and not hasattr(part, "description"):
            raise TypeError(
                "a validator written in the REPL does not run on the host; use Field(ge=..., pattern=...), and "
                "check the answer with code"
            )
        found.update({name: _rlm_plain(value) for name, value in said.items()})
        found.update(_rlm_constraints(inner))
    return found


class _RlmMediaType:
    """`dspy.Image(bytes)`, of a file or of `data:image/png;base64,...`: gives what the host makes one of."""

    def __new__(cls, source=None, **fields):
        if source is None:
            return fields
        source = _rlm_data_uri(source) if cls.__name__ == "Image" else source
        return {"url": source} if cls.__name__ == "Image" and isinstance(source, str) else source


def _rlm_data_uri(source):
    """Return the bytes of a picture, or those in a file, as a data URI; any other value as it is."""
    if isinstance(source, (str, _rlm_pathlib.Path)) and len(str(source)) < 1000:
        path = _rlm_pathlib.Path(source)
        source = path.read_bytes() if path.is_file() else source
    if not isinstance(source, bytes):
        return source
    kinds = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for start, kind in kinds.items() if source.startswith(start)), None)
    if kind is None:
        raise ValueError("dspy.Image takes a PNG, JPEG, GIF or WebP picture: its bytes, or the path of a file")
    return "data:image/%s;base64,%s" % (kind, _rlm_base64.b64encode(source).decode())


class _RlmField:
    def __init__(self, way, options):
        self.way, self.options = way, options


class _RlmInline:
    """`dspy.Signature("a -> b", "instructions")`."""

    def __init__(self, text, instructions=None):
        self.text, self.instructions = text, instructions

    def with_instructions(self, instructions):
        return _RlmInline(self.text, instructions)


class _RlmSignatureMeta(type):
    def __call__(cls, signature, instructions=None):
        if isinstance(signature, str):
            return _RlmInline(signature, instructions)
        if not isinstance(signature, dict) or any(type(pair) is not tuple for pair in signature.values()):
            raise TypeError(
                "dspy.Signature takes 'text -> label: str', or {'text': (str, dspy.InputField()), ...}"
            )
        kinds = {name: kind for name, (kind, _) in signature.items()}
        fields = {name: field for name, (_, field) in signature.items()}
        return type(cls)("Signature", (cls,), {"__doc__": instructions, "__annotations__": kinds, **fields})

    def with_instructions(cls, instructions):
        return type(cls)(cls.__name__, (cls,), {"__doc__": instructions})


class _RlmSignature(metaclass=_RlmSignatureMeta):
    __doc__ = None


def _rlm_signature(signature):
    """Return a signature (a string, a class, or what `dspy.Signature(...)` gave) as JSON-like data."""
    types = _RlmTypes()
    if isinstance(signature, str):
        signature = _RlmInline(signature)
    if isinstance(signature, _RlmInline):
        for word in sorted(set(_rlm_re.findall(r"[^\W\d]\w*", signature.text))):
            if _rlm_is_type(globals().get(word)):
                types.named(word, globals()[word])
        return {"text": signature.text, "instructions": signature.instructions, "classes": types.classes}
    if not (isinstance(signature, type) and issubclass(signature, _RlmSignature)):
        raise TypeError("a signature is a string like 'text -> label: str', or a subclass of dspy.Signature")
    fields = []
    for owner in reversed(signature.__mro__):
        for name, kind in _rlm_annotations(owner).items():
            field = getattr(signature, name, None)
            if not isinstance(field, _RlmField):
                raise TypeError("%s.%s needs dspy.InputField() or dspy.OutputField()" % (owner.__name__, name))
            fields.append(_rlm_field(name, field, types.text(kind)))
        for name, field in vars(owner).items():
            if isinstance(field, _RlmField) and name not in [known["name"] for known in fields]:
                fields.append(_rlm_field(name, field, "str"))
    name, doc = signature.__name__.lstrip("_") or "Signature", _rlm_inspect.cleandoc(signature.__doc__ or "")
    return {"name": name, "instructions": doc or None, "fields": fields, "classes": types.classes}


def _rlm_is_type(value):
    """Return whether a name of the REPL may stand for a type: a class written there, or `Score = Literal[...]`."""
    if isinstance(value, type):
        return value.__module__ == "__main__" or hasattr(value, "model_fields")
    return _rlm_typing.get_origin(value) is not None


def _rlm_annotations(owner):
    return _rlm_inspect.get_annotations(owner) if owner not in (object, _RlmSignature) else {}


def _rlm_field(name, field, kind):
    options = dict(field.options)
    frame = {"name": name, "way": field.way, "type": kind}
    frame["desc"] = str(options.pop("desc", None) or options.pop("description", None) or "")
    if "default_factory" in options:
        options["default"] = options.pop("default_factory")()
    if "default" in options:
        frame.update(required=False, default=_rlm_plain(options.pop("default")))
    frame["constraints"] = {key: _rlm_plain(options[key]) for key in _RLM_CONSTRAINTS if key in options}
    return frame


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
        run = getattr(self, "aforward", None) or _rlm_functools.partial(_rlm_await, self)
        return await run(*args, **kwargs)


def _rlm_missing(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        "the REPL's dspy has Predict, ChainOfThought, ReAct, ReActV2, RLM, Signature, InputField, OutputField, "
        "Module, Prediction, Tool, Image, Audio and File, not %r" % name
    )


def _rlm_make_dspy():
    module = _rlm_types.ModuleType("dspy", "Modules written in the REPL; their model calls run on the host.")
    for kind in ("Predict", "ChainOfThought", "ReAct", "ReActV2", "RLM"):
        setattr(module, kind, type(kind, (_RlmModule,), {"_rlm_kind": kind, "__module__": "dspy"}))
    module.Signature, module.Module = _RlmSignature, _RlmProgram
    module.Prediction = lambda **fields: _rlm_made("prediction", "Prediction", fields)
    module.Tool = lambda func, **_: func
    module.InputField = lambda **options: _RlmField("in", options)
    module.OutputField = lambda **options: _RlmField("out", options)
    for kind in ("Image", "Audio", "File"):
        setattr(module, kind, type(kind, (_RlmMediaType,), {"__module__": "dspy"}))
    module.__getattr__ = _rlm_missing
    return module


def _rlm_install(module):
    """Make `import dspy` return it; in the host's process only for this REPL's code."""
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
