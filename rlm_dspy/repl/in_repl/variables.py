"""Packs the variables of code for a file, and restores them. Not imported: the source runs in the REPL.

Its namespace has `names`, the variables of the REPL, and `report`, a function of the host. Each call of `report`
passes one entry of a `rlm_dspy.sessions.variables.Variables`: the name of the variable, the field, the value.
Pickles are made and read here, never on the host.
"""

import base64
import pickle
import types


def pack(most_bytes):
    """Report to the host how to restore each variable."""
    inside = names["SHOW_VARS"].__globals__
    inputs = inside["_rlm_inputs"]
    own = {*inside["_rlm_own"], *inside["_rlm_from_host"], *inputs, "SUBMIT"}
    for name, value in list(names.items()):
        if not name.startswith("_") and name not in own:
            kind, part = _part(name, value, inputs, most_bytes)
            report(name=name, kind=kind, part=part)


def _part(name, value, inputs, most_bytes):
    if isinstance(value, types.ModuleType):
        return "modules", value.__name__
    same = next((of for of, given in inputs.items() if given is value), None)
    if same is not None and not isinstance(value, (bool, int, float, type(None))):
        return "inputs", same
    if getattr(value, "__module__", "") == "__main__" and getattr(value, "__qualname__", "") in (name, "<lambda>"):
        return "sources", ""  # the host knows the code of this function or class
    try:
        data = pickle.dumps(value)
    except Exception as error:
        return "lost", _why(error)
    if len(data) > most_bytes:
        return "lost", "it has {:,} bytes, more than the {:,} that are kept".format(len(data), most_bytes)
    return "values", base64.b64encode(data).decode("ascii")


def unpack(saved):
    """Bind the variables again, in the order in which they depend on each other; report lost ones to the host."""
    steps = [(name, _import, part) for name, part in saved["modules"].items()]
    steps += [(name, _define, part) for name, part in saved["sources"].items()]
    steps += [(name, _input, part) for name, part in saved["inputs"].items()]
    steps += [(name, _load, part) for name, part in saved["values"].items()]
    failed = {}
    while steps:
        before, steps, failed = steps, [], {}
        for name, restore, part in before:
            try:
                restore(name, part)
            except Exception as error:
                steps.append((name, restore, part))
                failed[name] = _why(error)
        if len(steps) == len(before):
            break
    for name, why in failed.items():
        report(name=name, kind="lost", part=why)


def _import(name, module):
    __import__(module)
    names[name] = __import__("sys").modules[module]


def _define(_, source):
    exec(compile(source, "<saved>", "exec", dont_inherit=True), names)


def _input(name, of):
    names[name] = names["INPUTS"][of]


def _load(name, data):
    names[name] = pickle.loads(base64.b64decode(data))


def _why(error):
    return ("%s: %s" % (type(error).__name__, error))[:200]
