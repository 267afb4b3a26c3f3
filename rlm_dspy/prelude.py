"""The REPL's side of the functions that model code may call, as source to run in any interpreter.

It reaches the host through one tool, `_rlm_call(sub, items)`, which answers with one
`{"value": ...}` or `{"error": ..., "kind": ...}` an item, in order.
"""

HOST_TOOL = "_rlm_call"

SOURCE = '''
class SubCallError(RuntimeError):
    """A sub-call failed; the message says why."""


class FailedCall:
    """Stands in a list of answers for one that failed. It is false; `error` says why."""

    def __init__(self, error, kind):
        self.error, self.kind = error, kind

    def __bool__(self):
        return False

    def __repr__(self):
        return "<failed: " + self.error + ">"

    __str__ = __repr__


class _RlmListing(str):
    __repr__ = str.__str__


def llm_query(prompt):
    """Ask a model one question and return its answer."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise TypeError("llm_query takes one non-empty prompt (a str); for many use llm_query_batched(list).")
    answer = _rlm_call(sub="query", items=[{"prompt": prompt}])[0]
    if "error" in answer:
        raise SubCallError(answer["error"])
    return answer["value"]


def llm_query_batched(prompts):
    """Ask a model many questions at once; answers in order, a FailedCall (which is false) for each failed one."""
    if isinstance(prompts, str):
        raise TypeError("llm_query_batched takes a list of prompts; for one prompt use llm_query(prompt).")
    prompts = list(prompts)
    bad = [i for i, p in enumerate(prompts) if not isinstance(p, str) or not p.strip()]
    if bad:
        raise TypeError("llm_query_batched takes non-empty str prompts; these are not: " + str(bad[:10]))
    if not prompts:
        return []
    answers = _rlm_call(sub="query", items=[{"prompt": p} for p in prompts])
    return [FailedCall(a["error"], a["kind"]) if "error" in a else a["value"] for a in answers]


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
    return _RlmListing("\\n".join(lines) or "no variables")


_rlm_own = {"SubCallError", "FailedCall", "llm_query", "llm_query_batched", "SHOW_VARS", "SUBMIT"}
'''
