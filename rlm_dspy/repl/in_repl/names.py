"""Binds the host's functions and inputs in the REPL before the first turn, and restores them in every cell.

Not imported: its source runs after `dspy_facade.py`, in the same namespace.
"""

import inspect as _rlm_inspect
import types as _rlm_types

_rlm_own = {
    "llm_query": llm_query,
    "llm_query_batched": llm_query_batched,
    "SHOW_VARS": SHOW_VARS,
    "find_passages": find_passages,
    "query_passages": query_passages,
    "find_records": find_records,
    "dspy": dspy,
    "rlm_query": rlm_query,
    "rlm_query_batched": rlm_query_batched,
    "SubCallError": SubCallError,
    "FailedCall": FailedCall,
}
"""The values that code finds under these names in every cell."""
_rlm_from_host = {}
"""Tools and SUBMIT as they were bound for the first cell."""
_rlm_noted = set()
"""Inputs that have lost their names, if a note said so."""

query_passages.acall = _rlm_functools.partial(_rlm_await, query_passages)
for _rlm_sub in _rlm_given["subs"]:
    _rlm_function = _RlmCallable({"kind": "sub", "name": _rlm_sub["name"]}, _rlm_sub["fields"], _rlm_sub["usage"])
    _rlm_function.__doc__ = _rlm_sub["doc"]
    _rlm_own[_rlm_sub["name"]] = _rlm_function


def _rlm_defining(name):
    """Return the function that calls a host tool and defines here what it returns; see `repl/defining_tool.py`."""

    def call(*args, **kwargs):
        answer = globals()[_rlm_given["hidden"] + name](*args, **kwargs)
        lines = [answer["shown"]]
        if answer["source"]:
            lines.append(_rlm_define(answer["name"], answer["source"]))
        if any(lines):
            print("\n\n".join(lines))  # noqa: T201 (the code is to see it)
        return answer["value"]

    call.__name__ = call.__qualname__ = name
    return call


def _rlm_define(module, source):
    """Run a source as a module; bind its functions and classes here, and return a note on them."""
    names, made = globals(), _rlm_types.ModuleType(module)
    taken = {**_rlm_own, **_rlm_from_host, **_rlm_inputs}
    try:
        exec(compile(source, "<%s>" % module, "exec", dont_inherit=True), vars(made))
    except Exception as error:
        return "Its functions could not be defined: %s: %s" % (type(error).__name__, error)
    defined = {
        name: value
        for name, value in vars(made).items()
        if name[0] != "_" and callable(value) and getattr(value, "__module__", None) == module
    }
    vars(made).update({name: taken[name] for name in defined if name in taken})
    names.update({name: value for name, value in defined.items() if name not in taken})
    return "Defined: " + ", ".join(name + _rlm_called_as(names[name]) for name in defined)


def _rlm_called_as(function):
    try:
        return str(_rlm_inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"


for _rlm_name in _rlm_given["defining"]:
    _rlm_own[_rlm_name] = _rlm_defining(_rlm_name)


def _rlm_begin():
    """Record the inputs, which are bound now."""
    names = globals()
    if _rlm_given["marked"]:
        names.update({name: _rlm_restore(names[name]) for name in _rlm_given["inputs"] if name in names})
    _rlm_inputs.update({name: names.get(name) for name in _rlm_given["inputs"]})
    _rlm_own["INPUTS"] = _rlm_types.MappingProxyType(_rlm_inputs)
    _rlm_from_host.update({name: names[name] for name in (*_rlm_given["tools"], "SUBMIT") if name in names})
    names.update(_rlm_own)
    if eval("input", names) is input:  # in DSPy's own interpreters it would read the host's messages, without end
        names["input"] = _rlm_nobody
    if not _rlm_in_host:
        _rlm_after_cell.packed = _rlm_packed
        _rlm_pack_what_leaves()
    names["__after_cell__"] = _rlm_after_cell


def _rlm_nobody(*_):
    raise EOFError("There is no user to answer input() here. Use the variables and functions of this REPL.")


def _rlm_pack_what_leaves():
    """Make SUBMIT and tools mark values that JSON cannot express; in DSPy's own interpreters no hook does it."""
    submit = _rlm_from_host.get("SUBMIT")

    def SUBMIT(*args, **kwargs):
        return submit(*_rlm_packed(args), **{name: _rlm_packed(value) for name, value in kwargs.items()})

    session = getattr(submit, "__self__", None)
    call_tool = getattr(session, "call_tool", None)

    def packed_call(name, *args, **kwargs):
        if name.startswith("_"):
            return call_tool(name, *args, **kwargs)
        return call_tool(name, *_rlm_packed(args), **{key: _rlm_packed(value) for key, value in kwargs.items()})

    if call_tool is not None:  # dspy.LocalInterpreter binds its own methods before each cell
        session.submit, session.call_tool = SUBMIT, packed_call
    if _rlm_given["marked"] and submit is not None:
        globals()["SUBMIT"] = _rlm_from_host["SUBMIT"] = SUBMIT


def _rlm_after_cell(bound=None):
    """Bind the functions of the REPL again; return notes on them, on the inputs and on the output files.

    Args:
        bound: The values that the interpreter binds for each cell; None if it binds none.
    """
    notes, names = [], globals()
    names.update(_rlm_made=_rlm_made, _rlm_restore=_rlm_restore)
    if not callable(names.get("print", print)):
        notes.append(_rlm_put_away("print", names.pop("print")))
    for name, function in _rlm_own.items():
        if names.get(name) is not function:
            notes.append(
                _rlm_put_away(name, names[name]) if name in names else "%s was deleted and is restored." % name
            )
            names[name] = function
    for name, function in (_rlm_from_host if bound is None else bound).items():
        lost = not callable(names.get(name)) if bound is None else names.get(name) is not function
        if lost and not name.startswith("_"):
            if name in names:
                notes.append(_rlm_put_away(name, names[name]))
            names[name] = function
    for name, value in _rlm_inputs.items():
        if name in names and names[name] is value:
            _rlm_noted.discard(name)
        elif name not in _rlm_noted:
            _rlm_noted.add(name)
            now = "is now %s" % type(names[name]).__name__ if name in names else "was deleted"
            notes.append("%s %s; INPUTS[%r] holds the input." % (name, now, name))
    keep = (names if bound is None else bound).get("_rlm_keep_file")
    if keep is not None:
        notes += _rlm_hand_over(keep)
    return "\n".join("[%s]" % note for note in notes)


def _rlm_put_away(name, value):
    """Keep the value that code bound to a function's name under another name; return a note on it."""
    names, other = globals(), name + "_"
    while other in _rlm_own or other in _rlm_from_host or other in _rlm_inputs:
        other += "_"
    names[other] = value
    return "%s is a function of this REPL and was restored; your value is in %s." % (name, other)


def _rlm_show_notes():
    """Print the notes of `_rlm_after_cell`, if the interpreter does not call it."""
    if notes := _rlm_after_cell():
        print(notes)  # noqa: T201 (the only way out of such an interpreter)
