"""Encodes and decodes values on the REPL's side: values that JSON does not know carry a mark.

Not imported: its source runs in one namespace with that of `interpreters/worker/encoder.py` before it, which has
`plain` and `in_order`, and `functions.py` behind it. Host side: `repl/value_codec.py`.

    {"__record__": name, "kind": kind, "fields": {...}}    an object of a class of that name: see `_rlm_made`
    {"__type__": name, "value": ...}                       a value of one of Python's own types: see `_RLM_TYPES`
"""

import base64 as _rlm_base64
import collections as _rlm_collections
import dataclasses as _rlm_dataclasses
import datetime as _rlm_datetime  # noqa: ICN001 (a name of this namespace)
import decimal as _rlm_decimal
import enum as _rlm_enum
import fractions as _rlm_fractions
import json as _rlm_json
import math as _rlm_math
import pathlib as _rlm_pathlib
import sys as _rlm_sys
import uuid as _rlm_uuid

_RLM_TIMES = (_rlm_datetime.datetime, _rlm_datetime.date, _rlm_datetime.time)
_RLM_FROM_TEXT = (_rlm_decimal.Decimal, _rlm_fractions.Fraction, _rlm_uuid.UUID, complex, float)
_RLM_TYPES = {
    **{kind.__name__: kind for kind in (*_RLM_FROM_TEXT, set, frozenset, tuple, dict)},
    **{kind.__name__: kind.fromisoformat for kind in _RLM_TIMES},
    "bytes": _rlm_base64.b64decode,
    "timedelta": lambda parts: _rlm_datetime.timedelta(*parts),
    "Path": _rlm_pathlib.PurePath,
}
_RLM_MARKS = ("__record__", "__type__")
_RLM_SIMPLE = {str, int, bool, type(None)}
_RLM_HEAP_TYPE = 1 << 9  # of classes that Python code has made
_rlm_in_host = "rlm_dspy" in _rlm_sys.modules
_rlm_classes = {}
_rlm_media = {}  # handles of images, sounds and files, by what `str` gives of them


class _RlmFieldName(str):
    """The name of a field. It unpacks into name and value, as models give pairs when they are iterated over."""

    def __new__(cls, name, value):
        self = str.__new__(cls, name)
        self.pair = (str(name), value)
        return self

    def __iter__(self):
        return iter(self.pair)

    def __reduce__(self):
        return str, self.pair[:1]  # a copy is the plain name


class _RlmRecord(dict):
    """What stands for an object of the host's: `record.name` or `record["name"]`."""

    _rlm_kind, _rlm_name = "prediction", "Prediction"
    __dict__ = property(lambda self: dict(dict.items(self)))

    def __getattribute__(self, name):
        if not name.startswith("_") and dict.__contains__(self, name):  # also one that a dict has: items, keys
            return dict.__getitem__(self, name)
        return dict.__getattribute__(self, name)

    def __getattr__(self, name):
        raise AttributeError("no field %r; the fields are: %s" % (name, ", ".join(dict.keys(self))))

    def __setattr__(self, name, value):
        self[name] = value

    def __hash__(self):
        return hash((self._rlm_name, tuple(dict.items(self))))

    def __reduce__(self):
        return _rlm_made, (self._rlm_kind, self._rlm_name, dict(dict.items(self)))

    def toDict(self):
        return _rlm_unwrapped(self)

    _asdict = toDict

    def model_dump(self, *, mode="python", **_):
        return _rlm_plain(self) if mode == "json" else _rlm_unwrapped(self)

    def model_dump_json(self, *, indent=None, **_):
        return _rlm_json.dumps(_rlm_plain(self), indent=indent, ensure_ascii=False)

    def model_copy(self, *, update=None, **_):
        return type(self)(**{**dict(dict.items(self)), **(update or {})})

    def __repr__(self):
        return "%s(%s)" % (self._rlm_name, ", ".join("%s=%r" % item for item in dict.items(self)))


class _RlmMedia:
    """An image, a sound or a file on the host; pass it to sub-calls, llm_query(prompt, it), SUBMIT.

    It has `type`, `media_type` and `size` in bytes, an image `width` and `height`; None for what is not known.
    """

    def __init__(self, kind, key, about, **facts):
        self.type = self.kind = kind
        self.key, self.about, self._facts = key, about, facts
        self.media_type, self.size = facts.get("media_type"), facts.get("size")
        self.width, self.height = facts.get("width"), facts.get("height")
        _rlm_media[str(self)] = self

    def __repr__(self):
        return "<%s %s: %s>" % (self.kind, self.key, self.about)

    def __eq__(self, other):
        return isinstance(other, _RlmMedia) and other.key == self.key

    def __hash__(self):
        return hash(self.key)

    def __reduce__(self):
        return _rlm_made, ("media", self.kind, {"key": self.key, "about": self.about, **self._facts})


class Files(FileMapping):
    """A read-only mapping from the name of each file to its text, which is read when it is asked for."""

    def __init__(self, key, sizes):
        def read(**asked):
            return globals()["_rlm_read"](key=key, **asked)

        attach = None if _rlm_given["marked"] else lambda name: read(whole=name)
        FileMapping.__init__(self, sizes, lambda parts: read(parts=parts), attach)
        self.key = key

    def __reduce__(self):
        return _rlm_made, ("host", "Files", {"key": self.key, "sizes": self.sizes})


class Table(TableView):
    """A read-only table; `df()`, `sql(query)` and `head(n)` give pandas DataFrames."""

    def __init__(self, key, arrow):
        TableView.__init__(self, arrow)
        self.key = key

    def __reduce__(self):
        return _rlm_made, ("host", "Table", {"key": self.key, "arrow": self.arrow})


def _rlm_made(kind, name, fields):
    """Return what stands in the REPL for an object of the host's.

    Args:
        kind: `model`, `dataclass`, `prediction`, `namedtuple`, `enum`, `media` or `host`: files or a table.
        name: The name of its class.
        fields: Its fields by name; of an enum `member`, `members` and `base`; of media `key` and `about`; of files
            `key` and `sizes`; of a table `key` and `arrow`.
    """
    if kind == "media":
        return _RlmMedia(name, **fields)
    if kind == "host":
        return {"Files": Files, "Table": Table}[name](**fields)
    key = (kind, name, repr(fields) if kind == "enum" else tuple(fields))
    if key not in _rlm_classes:
        _rlm_classes[key] = _RLM_CLASSES.get(kind, _rlm_record_class)(kind, name, fields)
    made = _rlm_classes[key]
    if kind == "enum":
        return made[fields["member"]]
    return made(*fields.values()) if kind == "namedtuple" else made(**fields)


def _rlm_record_class(kind, name, fields):
    names = {"_rlm_kind": kind, "_rlm_name": name, "__module__": "__main__"}
    if kind == "model":
        names["__iter__"] = lambda self: iter([_RlmFieldName(*item) for item in dict.items(self)])
    if kind == "dataclass":
        like = _rlm_dataclasses.make_dataclass(name, list(fields))
        names.update(__dataclass_fields__=like.__dataclass_fields__, __match_args__=like.__match_args__)
    return type(name, (_RlmRecord,), names)


def _rlm_enum_class(_kind, name, fields):
    base = {"StrEnum": getattr(_rlm_enum, "StrEnum", None), "IntEnum": _rlm_enum.IntEnum}.get(fields["base"])
    if base is not None:
        return base(name, fields["members"], module="__main__")
    kinds = {type(value) for value in fields["members"].values()}  # code compares members with their values, too
    mixed = kinds.pop() if len(kinds) == 1 and kinds <= {str, int, float} else None
    return _rlm_enum.Enum(name, fields["members"], type=mixed, module="__main__")


def _rlm_tuple_class(_kind, name, fields):
    plain = _rlm_collections.namedtuple(name, list(fields))  # noqa: PYI024 (it has no annotations)

    def item(self, key):
        return getattr(self, key) if isinstance(key, str) and key in self._fields else plain.__getitem__(self, key)

    names = {
        "__slots__": (),
        "__getitem__": item,
        "keys": lambda self: list(self._fields),
        "__module__": "__main__",
    }
    return type(name, (plain,), {**names, "model_dump": lambda self, **_: self._asdict(), "toDict": plain._asdict})


_RLM_CLASSES = {"enum": _rlm_enum_class, "namedtuple": _rlm_tuple_class}


def _rlm_restore(value):
    """Return a value from the host with what was marked in it made again."""
    if isinstance(value, list):
        return [*map(_rlm_restore, value)]  # not a comprehension: it takes one more level of the stack
    if not isinstance(value, dict):
        return value
    if "__type__" in value:
        return _RLM_TYPES[value["__type__"]](_rlm_restore(value["value"]))
    fields = value["fields"] if "__record__" in value else value
    fields = dict(zip(fields, map(_rlm_restore, fields.values())))
    return _rlm_made(value["kind"], value["__record__"], fields) if "__record__" in value else fields


def _rlm_unwrapped(value):
    """Return a value with plain dicts in the place of records."""
    if isinstance(value, dict):
        return dict(zip(dict.keys(value), map(_rlm_unwrapped, dict.values(value))))
    return type(value)(map(_rlm_unwrapped, value)) if type(value) in (list, tuple, set) else value


def _rlm_packed(value):
    """Return a value as it leaves the REPL: with what JSON does not know marked."""
    if type(value) in _RLM_SIMPLE or (type(value) is float and _rlm_math.isfinite(value)):
        return value
    if isinstance(value, _RlmMedia):
        return {"__record__": value.kind, "kind": "media", "fields": {"key": value.key}}
    if isinstance(value, (Files, Table)):
        return {"__record__": type(value).__name__, "kind": "media", "fields": {"key": value.key}}
    if isinstance(value, (dict, list, tuple)):
        return _rlm_packed_container(value)
    if isinstance(value, (set, frozenset)):
        return _rlm_packed_container(in_order(value))
    fields = None if isinstance(value, (str, int, float, _rlm_enum.Enum)) else _rlm_fields(value)
    if fields is not None:
        return _rlm_packed_record(*fields)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"__type__": "bytes", "value": _rlm_base64.b64encode(value).decode()}
    if isinstance(value, float) and not _rlm_math.isfinite(value):
        return {"__type__": "float", "value": str(float(value))}
    if type(value) is _rlm_datetime.timedelta:
        return {"__type__": "timedelta", "value": [value.days, value.seconds, value.microseconds]}
    if type(value) in _RLM_TIMES:
        return {"__type__": type(value).__name__, "value": value.isoformat()}
    return value if _rlm_is_media(value) else _rlm_packed(_rlm_simplified(value))


def _rlm_packed_container(value):
    if isinstance(value, _RlmRecord):
        return _rlm_packed_record(value._rlm_kind, value._rlm_name, dict(dict.items(value)))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _rlm_packed_record("namedtuple", type(value).__name__, dict(zip(value._fields, value)))
    if not isinstance(value, dict):
        return [*map(_rlm_packed, value)]
    packed, pairs = dict(zip(dict.keys(value), map(_rlm_packed, dict.values(value)))), []
    if all(type(name) is str and name not in _RLM_MARKS for name in packed):
        return packed
    for name, item in packed.items():
        key = _rlm_packed(name)
        pairs.append([{"__type__": "tuple", "value": key} if isinstance(key, list) else key, item])
    return {"__type__": "dict", "value": pairs}


def _rlm_packed_record(kind, name, fields):
    return {
        "__record__": name,
        "kind": kind,
        "fields": dict(zip(map(str, fields), map(_rlm_packed, fields.values()))),
    }


def _rlm_fields(value):
    """Return kind, name and fields of an object that has fields; None of any other."""
    kind = type(value)
    if isinstance(getattr(kind, "model_fields", None), dict) and not _rlm_is_media(value):
        fields = {name: getattr(value, name) for name in kind.model_fields}
        return "model", kind.__name__, {**fields, **(value.model_extra or {})}
    if _rlm_dataclasses.is_dataclass(kind):
        fields = _rlm_dataclasses.fields(value)
        return "dataclass", kind.__name__, {field.name: getattr(value, field.name) for field in fields}
    own = (
        kind.__module__ in ("__main__", "builtins")
        and kind.__flags__ & _RLM_HEAP_TYPE
        and kind is not FailedCall
        and not kind.__name__.startswith("_Rlm")
    )
    if own and hasattr(value, "__dict__") and not callable(value) and not isinstance(value, BaseException):
        return "model", kind.__name__, {name: item for name, item in vars(value).items() if name[0] != "_"}
    return None


def _rlm_is_media(value):
    if not _rlm_in_host:
        return False
    return isinstance(value, (_rlm_sys.modules["dspy"].Type, _rlm_sys.modules["rlm_dspy.inputs"].HostInput))


def _rlm_simplified(value):
    """Return a form of a value that is closer to JSON, as `plain` gives it; a time of pandas as one of Python."""
    for kind in (str, int, float):
        if isinstance(value, kind) and not isinstance(value, _rlm_enum.Enum):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, FailedCall):
        raise TypeError("a FailedCall is not a value; leave out failed items: [a for a in answers if a]")
    if hasattr(value, "to_pydatetime") and not hasattr(value, "columns"):
        return value.to_pydatetime() if value == value else None  # not a time
    return plain(value)


def _rlm_plain(value):
    """Return a value as JSON-like data without marks."""
    return _rlm_unmarked(_rlm_packed(value))


def _rlm_unmarked(value):
    if isinstance(value, list):
        return [*map(_rlm_unmarked, value)]
    if not isinstance(value, dict):
        return value
    kind, inner = value.get("__type__"), value.get("value")
    if kind == "dict":
        return {str(key): _rlm_unmarked(item) for key, item in inner}
    if kind is not None:
        return float(inner) if kind == "float" else inner
    fields = value["fields"] if "__record__" in value else value
    return dict(zip(fields, map(_rlm_unmarked, fields.values())))
