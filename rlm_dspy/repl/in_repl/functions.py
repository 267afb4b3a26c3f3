"""Defines the functions that model code calls in the REPL. Not imported: the source runs in any interpreter.

It reaches the host through one tool, `_rlm_call(call=...)`, with JSON-like data both ways:

    call    {"to": what is called, "items": [[values by field, inputs of the run by field], ...],
             "same": [values, inputs] that hold for every item, "many": whether a list is awaited}
    answer  {"answers": [{"value": ...} or {"error": why, "kind": type}, ...]}, in order; or {"refused": why,
             "kind": type} if nothing was done

`_rlm_given` describes the run: names of its inputs, subs and tools. `globals()` returns the variables of the REPL.
The code here has its own namespace, in which `list` is `list`, whatever model code assigns to that name.
The interpreter binds `SUBMIT` (`interpreters/worker/cell.py`).
"""

import asyncio as _rlm_asyncio
import concurrent.futures as _rlm_futures
import functools as _rlm_functools
import re as _rlm_re

_rlm_inputs = {}  # what each was when the run began
_RLM_HANDLE_CHARS = 1000
_RLM_THREADS = 32
_RLM_LEAVE_OUT = "This item of a batch failed. Leave such items out: [reply for reply in replies if reply]"


class SubCallError(RuntimeError):
    """A sub-call failed, or was refused; the message says why. `partial` holds what there is of a cut reply."""

    partial = None


class FailedCall:
    """Stands in a list of answers for one that failed. It is false; `error` says why, `item` what was asked.

    `partial` holds what there is of a cut reply.
    """

    def __init__(self, error, kind, item=None, partial=None):
        self.error, self.kind, self.item, self.partial = error, kind, item, partial

    def __bool__(self):
        return False

    def __repr__(self):
        return "<failed: " + self.error + ">"

    __str__ = __repr__

    def _not_an_answer(self, *_):
        raise SubCallError(self.error + "\n" + _RLM_LEAVE_OUT)

    __len__ = __iter__ = __getitem__ = __contains__ = __add__ = __radd__ = __lt__ = __gt__ = _not_an_answer
    __int__ = __float__ = __index__ = __mod__ = __mul__ = _not_an_answer

    def __getattr__(self, name):
        raise AttributeError("no %s: %s\n%s" % (name, vars(self).get("error"), _RLM_LEAVE_OUT))


class _RlmListing(str):
    __repr__ = str.__str__


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
            values[name] = _rlm_packed(value)
        else:
            handles[name] = known
    return [values, handles]


def _rlm_ask(to, items, same=None, many=True):
    answer = globals()["_rlm_call"](
        call={"to": to, "items": [_rlm_split(i) for i in items], "same": _rlm_split(same or {}), "many": many}
    )
    if "refused" in answer:
        kind = {"TypeError": TypeError, "ValueError": ValueError}.get(answer["kind"], SubCallError)
        raise kind(answer["refused"]) from None
    return answer["answers"]


def _rlm_one(to, fields):
    answer = _rlm_ask(to, [fields], many=False)[0]
    if "error" in answer:
        error = SubCallError(answer["error"])
        error.partial = answer.get("partial")
        raise error
    return _rlm_restore(answer["value"])


def _rlm_many(to, items, same=None):
    if not items:
        return []
    answers = _rlm_ask(to, items, same)
    return [
        FailedCall(a["error"], a["kind"], item, a.get("partial")) if "error" in a else _rlm_restore(a["value"])
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
        """Call it on many items (values, tuples or dicts) concurrently; answers keep the order.

        A failed item gives a FailedCall, which is falsy. Keyword arguments apply to every item.
        """
        return _rlm_many(self._to, self._items(items, same), same)

    batch = map

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
            raise TypeError("got %d arguments. Call it as %s" % (len(args), self._usage))
        fields = dict(zip(self._fields, args))
        twice = [name for name in kwargs if name in fields]
        if twice:
            raise TypeError("got %s twice. Call it as %s" % (", ".join(twice), self._usage))
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
            return dict(dict.items(item))
        if len(free) == 1:
            return {free[0]: item[0] if isinstance(item, tuple) and len(item) == 1 else item}
        if isinstance(item, (tuple, list)) and len(item) <= len(free):
            return dict(zip(free, item))
        if free and (
            isinstance(item, _RlmRecord) or not isinstance(item, (tuple, list, dict))
        ):  # as in a call with one argument
            return {free[0]: item}
        raise TypeError(
            "item %d is not a dict or tuple of (%s). Call it as %s" % (number, ", ".join(free), self._usage)
        )


def _rlm_prompts(prompts, name, single):
    if isinstance(prompts, str):
        raise TypeError("%s takes a list of prompts; for one prompt use %s." % (name, single))
    return list(prompts)


def _rlm_check_prompts(prompts, name, kinds=str):
    bad = [
        i
        for i, p in enumerate(prompts)
        if not isinstance(p, kinds) or not (p.strip() if isinstance(p, str) else p)
    ]
    if bad:
        raise TypeError("%s takes non-empty str prompts; these are not: %s" % (name, bad[:10]))


def _rlm_prompt(prompt, media=()):
    """Return a prompt as it is sent: a str, or what it consists of if there is more in it than text."""
    parts = [*(prompt if isinstance(prompt, (list, tuple)) else [prompt]), *media]
    split = []
    if isinstance(prompt, (list, tuple)) and all(isinstance(part, str) for part in parts):
        parts = [None]
    for part in parts:
        if isinstance(part, str):
            shown = [name for name in _rlm_media if name in part]
            pieces = _rlm_re.split("(%s)" % "|".join(map(_rlm_re.escape, shown)), part) if shown else [part]
            split += [_rlm_media.get(piece, piece) for piece in pieces if piece.strip()]
        elif (
            isinstance(part, _RlmMedia) or _rlm_is_media(part) or (isinstance(part, dict) and set(part) == {"url"})
        ):
            split.append(part)
        else:
            split = []
            break
    if not any(isinstance(part, str) for part in split):
        raise TypeError(
            "A prompt is one non-empty str, optionally followed by images, not %s; for many prompts use "
            "llm_query_batched(list of str)." % type(prompt).__name__
        )
    return split if len(split) > 1 or not isinstance(prompt, str) else str.__str__(prompt)


def _rlm_query_of(model):
    """Return what `llm_query` calls. The model is the host's choice: a name can only say which one it is."""
    known = _rlm_given.get("model", "")
    if model is not None and model not in (known, known.rpartition("/")[2]):
        raise ValueError(
            "llm_query asks %s; omit model=. (The user can declare a sub with another model.)"
            % (known or "the model of this run")
        )
    return {"kind": "query"}


def llm_query(prompt, *media, model=None, images=()):
    """Ask a model one question and return its answer."""
    return _rlm_one(_rlm_query_of(model), {"prompt": _rlm_prompt(prompt, (*media, *images))})


def llm_query_batched(prompts, model=None):
    """Ask a model many questions concurrently; answers in order. A failed one is a FailedCall, which is falsy."""
    prompts = _rlm_prompts(prompts, "llm_query_batched", "llm_query(prompt)")
    _rlm_check_prompts(prompts, "llm_query_batched", (str, list, tuple))
    return _rlm_many(_rlm_query_of(model), [{"prompt": _rlm_prompt(prompt)} for prompt in prompts])


def rlm_query(prompt, context=None):
    """Have a child RLM with its own REPL answer a prompt about a context."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise TypeError("rlm_query takes a non-empty prompt (a str) and its context.")
    return _rlm_one({"kind": "rlm_query"}, {"prompt": prompt, **({} if context is None else {"context": context})})


def rlm_query_batched(prompts, contexts=None):
    """Run `rlm_query` concurrently on prompts, on (prompt, context) pairs, or on prompts and as many contexts."""
    prompts = _rlm_prompts(prompts, "rlm_query_batched", "rlm_query(prompt, context)")
    if contexts is not None:
        contexts = list(contexts)
        if len(contexts) != len(prompts):
            raise TypeError(
                "got %d prompts and %d contexts; pass as many contexts as prompts." % (len(prompts), len(contexts))
            )
        prompts = list(zip(prompts, contexts))
    pairs = [tuple(p) if isinstance(p, (tuple, list)) and len(p) == 2 else (p, None) for p in prompts]
    _rlm_check_prompts([prompt for prompt, _ in pairs], "rlm_query_batched")
    items = [{"prompt": p, **({} if context is None else {"context": context})} for p, context in pairs]
    return _rlm_many({"kind": "rlm_query"}, items)


for _rlm_query in (llm_query, llm_query_batched, rlm_query, rlm_query_batched):
    _rlm_query.acall = _rlm_functools.partial(_rlm_await, _rlm_query)


def SHOW_VARS():
    """List the names, types and sizes of the variables."""
    lines = []
    for name, value in sorted(globals().items()):
        if (
            name.startswith("_")
            or name in _rlm_own
            or name == "SUBMIT"
            or callable(value)
            or type(value).__name__ == "module"
        ):
            continue
        try:
            size = ", %d long" % len(value)
        except Exception:
            size = ""
        lines.append("%s: %s%s" % (name, type(value).__name__, size))
    return _RlmListing("\n".join(lines) or "no variables")
