"""What model code may call, on the REPL's side. Not imported: its source runs in whatever interpreter a run has.

It reaches the host through one tool, `_rlm_call(call=...)`, with JSON-like data both ways:

    call    {"to": what is called, "items": [[values by field, inputs of the run by field], ...],
             "same": [values, inputs] that hold for every item, "many": whether a list is awaited}
    answer  {"answers": [{"value": ...} or {"error": why, "kind": type}, ...]}, in order; or {"refused": why,
             "kind": type} if nothing was done

`_rlm_given` is what the host says of this run: names of its inputs, its subs, its tools.
"""

import asyncio as _rlm_asyncio
import concurrent.futures as _rlm_futures
import dataclasses as _rlm_dataclasses
import enum as _rlm_enum
import functools as _rlm_functools
import inspect as _rlm_inspect
import re as _rlm_re
import sys as _rlm_sys
import types as _rlm_types
import typing as _rlm_typing

_rlm_inputs = {name: globals().get(name) for name in _rlm_given["inputs"]}  # what each was when the run began
_RLM_HANDLE_CHARS = 1000
_RLM_THREADS = 32


class SubCallError(RuntimeError):
    """A sub-call failed, or was refused; the message says why."""


class FailedCall:
    """Stands in a list of answers for one that failed. It is false; `error` says why, `item` what was asked."""

    def __init__(self, error, kind, item=None):
        self.error, self.kind, self.item = error, kind, item

    def __bool__(self):
        return False

    def __repr__(self):
        return "<failed: " + self.error + ">"

    __str__ = __repr__


class _RlmRecord(dict):
    """An answer of several fields: `record.name` or `record["name"]`."""

    def __init__(self, _rlm_name="Prediction", **fields):
        super().__init__(fields)
        self.__dict__["_rlm_name"] = _rlm_name

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError("there is no field %r; there are: %s" % (name, ", ".join(self))) from None

    def __setattr__(self, name, value):
        self[name] = value

    def _asdict(self):
        return dict(self)

    toDict = model_dump = _asdict

    def __repr__(self):
        fields = ", ".join("%s=%r" % item for item in self.items())
        return "%s(%s)" % (self.__dict__.get("_rlm_name", "Prediction"), fields)


class _RlmListing(str):
    __repr__ = str.__str__


def _rlm_restore(value):
    """Return an answer with its records as such."""
    if isinstance(value, list):
        return [_rlm_restore(item) for item in value]
    if isinstance(value, dict):
        if "__record__" in value:
            record = _RlmRecord(value["__record__"])
            record.update({name: _rlm_restore(item) for name, item in value["fields"].items()})
            return record
        return {name: _rlm_restore(item) for name, item in value.items()}
    return value


def _rlm_plain(value):
    """Return a value as JSON-like data."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, _rlm_enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(name): _rlm_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rlm_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [_rlm_plain(item) for item in sorted(value, key=repr)]
    if isinstance(value, FailedCall):
        raise TypeError("a FailedCall was passed on as a value; leave failed ones out: [a for a in answers if a]")
    if hasattr(value, "model_dump"):
        return _rlm_plain(value.model_dump())
    if _rlm_dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _rlm_plain({field.name: getattr(value, field.name) for field in _rlm_dataclasses.fields(value)})
    for convert in ("isoformat", "tolist"):
        if hasattr(value, convert):
            return _rlm_plain(getattr(value, convert)())
    if type(value).__name__ in ("Decimal", "Fraction", "PosixPath", "UUID"):
        return str(value)
    raise TypeError(
        "a %s cannot be passed to a sub-call; pass str, numbers, lists or dicts" % type(value).__name__
    )


def _rlm_split(fields):
    """Return values to send, and by name the inputs of the run among them, which need not cross."""
    values, handles = {}, {}
    for name, value in fields.items():
        known = None
        if not isinstance(value, (bool, int, float, list, dict, set, type(None))) and not (
            isinstance(value, str) and len(value) < _RLM_HANDLE_CHARS
        ):
            known = next((own for own, given in _rlm_inputs.items() if given is value), None)
        if known is None:
            values[name] = _rlm_plain(value)
        else:
            handles[name] = known
    return [values, handles]


def _rlm_ask(to, items, same=None, many=True):
    answer = _rlm_call(
        call={"to": to, "items": [_rlm_split(i) for i in items], "same": _rlm_split(same or {}), "many": many}
    )
    if "refused" in answer:
        kind = {"TypeError": TypeError, "ValueError": ValueError}.get(answer["kind"], SubCallError)
        raise kind(answer["refused"]) from None
    return answer["answers"]


def _rlm_one(to, fields):
    answer = _rlm_ask(to, [fields], many=False)[0]
    if "error" in answer:
        raise SubCallError(answer["error"])
    return _rlm_restore(answer["value"])


def _rlm_many(to, items, same=None):
    if not items:
        return []
    answers = _rlm_ask(to, items, same)
    return [
        FailedCall(a["error"], a["kind"], item) if "error" in a else _rlm_restore(a["value"])
        for a, item in zip(answers, items)
    ]


async def _rlm_await(function, *args, **kwargs):
    """Call a function in a thread of the running loop, which ends with the loop."""
    loop = _rlm_asyncio.get_running_loop()
    if not getattr(loop, "_rlm_threads", False):
        loop.set_default_executor(_rlm_futures.ThreadPoolExecutor(_RLM_THREADS))
        loop._rlm_threads = True
    return await loop.run_in_executor(None, _rlm_functools.partial(function, *args, **kwargs))


class _RlmCallable:
    """What runs on the host: call it, `.map(items)` it, or await `.acall(...)` and `.amap(items)`."""

    def __init__(self, to, fields, usage, positional=True):
        self._to, self._fields, self._usage, self._positional = to, fields, usage, positional

    def __call__(self, *args, **kwargs):
        return _rlm_one(self._to, self._by_name(args, kwargs))

    def map(self, items, **same):
        """Many at once: values, tuples or dicts; answers in order, a FailedCall (which is false) for a failed one.

        Keyword arguments hold for every item.
        """
        return _rlm_many(self._to, self._items(items, same), same)

    def batch(self, items, **same):
        return self.map(items, **same)

    async def acall(self, *args, **kwargs):
        return await _rlm_await(self, *args, **kwargs)

    async def amap(self, items, **same):
        return await _rlm_await(self.map, items, **same)

    def __repr__(self):
        return "<" + self._usage + ">"

    def _by_name(self, args, kwargs):
        if args and not self._positional:
            raise TypeError("Call it with keyword arguments: " + self._usage)
        if len(args) > len(self._fields):
            raise TypeError("%d arguments were given. Call it as %s" % (len(args), self._usage))
        fields = dict(zip(self._fields, args))
        twice = [name for name in kwargs if name in fields]
        if twice:
            raise TypeError("%s was given twice. Call it as %s" % (", ".join(twice), self._usage))
        return {**fields, **kwargs}

    def _items(self, items, same):
        if isinstance(items, (str, bytes, dict)):
            raise TypeError("map takes a list of items, not one %s: %s" % (type(items).__name__, self._usage))
        free = [name for name in self._fields if name not in same]
        return [self._item(number, item, free) for number, item in enumerate(items)]

    def _item(self, number, item, free):
        if hasattr(item, "inputs") and hasattr(item, "toDict"):
            item = item.toDict()
        if isinstance(item, dict) and item and set(item) <= set(self._fields):
            return item
        if len(free) == 1:
            return {free[0]: item[0] if isinstance(item, tuple) and len(item) == 1 else item}
        if isinstance(item, (tuple, list)) and len(item) <= len(free):
            return dict(zip(free, item))
        raise TypeError("item %d is no dict or tuple of (%s). Usage: %s" % (number, ", ".join(free), self._usage))


def _rlm_prompts(prompts, name, single):
    if isinstance(prompts, str):
        raise TypeError("%s takes a list of prompts; for one prompt use %s." % (name, single))
    return list(prompts)


def _rlm_check_prompts(prompts, name):
    bad = [i for i, p in enumerate(prompts) if not isinstance(p, str) or not p.strip()]
    if bad:
        raise TypeError("%s takes non-empty str prompts; these are not: %s" % (name, bad[:10]))


def llm_query(prompt):
    """Ask a model one question and return its answer."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise TypeError("llm_query takes one non-empty prompt (a str); for many use llm_query_batched(list).")
    return _rlm_one({"kind": "query"}, {"prompt": prompt})


def llm_query_batched(prompts):
    """Ask a model many questions at once; answers in order, a FailedCall (which is false) for each failed one."""
    prompts = _rlm_prompts(prompts, "llm_query_batched", "llm_query(prompt)")
    _rlm_check_prompts(prompts, "llm_query_batched")
    return _rlm_many({"kind": "query"}, [{"prompt": prompt} for prompt in prompts])


def rlm_query(prompt, context=None):
    """Have a child RLM, with a REPL of its own, answer a prompt about a context."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise TypeError("rlm_query takes a non-empty prompt (a str), and the context it is about.")
    return _rlm_one({"kind": "rlm_query"}, {"prompt": prompt, **({} if context is None else {"context": context})})


def rlm_query_batched(prompts, contexts=None):
    """Many `rlm_query` at once: prompts, or (prompt, context) pairs, or prompts and as many contexts."""
    prompts = _rlm_prompts(prompts, "rlm_query_batched", "rlm_query(prompt, context)")
    if contexts is not None:
        contexts = list(contexts)
        if len(contexts) != len(prompts):
            raise TypeError("%d prompts and %d contexts were given." % (len(prompts), len(contexts)))
        prompts = list(zip(prompts, contexts))
    pairs = [tuple(p) if isinstance(p, (tuple, list)) and len(p) == 2 else (p, None) for p in prompts]
    _rlm_check_prompts([prompt for prompt, _ in pairs], "rlm_query_batched")
    items = [{"prompt": p, **({} if context is None else {"context": context})} for p, context in pairs]
    return _rlm_many({"kind": "rlm_query"}, items)


def _rlm_twin(function):
    async def acall(*args, **kwargs):
        return await _rlm_await(function, *args, **kwargs)

    function.acall = acall


for _rlm_name in (llm_query, llm_query_batched, rlm_query, rlm_query_batched):
    _rlm_twin(_rlm_name)


# Types and signatures on their way to the host.

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
    """Make `import dspy` give it: in a process of the REPL's own for all, in the host's for this REPL's code alone."""
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


def SHOW_VARS():
    """Names, types and sizes of the variables."""
    lines = []
    for name, value in sorted(globals().items()):
        if name.startswith("_") or name in _rlm_own or callable(value) or type(value).__name__ == "module":
            continue
        try:
            size = ", %d long" % len(value)
        except Exception:
            size = ""
        lines.append("%s: %s%s" % (name, type(value).__name__, size))
    return _RlmListing("\n".join(lines) or "no variables")


_rlm_own = {
    *("SubCallError", "FailedCall", "llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched", "dspy"),
    *("SHOW_VARS", "SUBMIT"),
}

for _rlm_sub in _rlm_given["subs"]:
    globals()[_rlm_sub["name"]] = _RlmCallable(
        {"kind": "sub", "name": _rlm_sub["name"]}, _rlm_sub["fields"], _rlm_sub["usage"]
    )
    globals()[_rlm_sub["name"]].__doc__ = _rlm_sub["doc"]
