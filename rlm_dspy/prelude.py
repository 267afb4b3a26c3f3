"""The REPL's side of the functions that model code may call, as source to run in any interpreter."""

import base64
import importlib.util
import marshal
from functools import cache
from pathlib import Path

HOST_TOOL = "_rlm_call"
"""The one host function that it reaches the host by."""
_FILE = "<functions>"
SOURCE = "\n\n".join(
    Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("in_repl.py", "in_repl_dspy.py")
)
"""What is run in a REPL before the first turn; it wants `HOST_TOOL` and the variable `_rlm_given`."""
RUN = f"""
def _rlm_code(source, compiled):
    import base64, importlib.util, marshal
    if compiled[0] == importlib.util.MAGIC_NUMBER.hex():
        return marshal.loads(base64.b64decode(compiled[1]))
    return compile(source, {_FILE!r}, 'exec', dont_inherit=True)

exec(_rlm_code(*_rlm_functions), globals())
del _rlm_code, _rlm_functions
"""
"""Runs what `functions` returned, bound as `_rlm_functions`; not as a cell, so that tracebacks leave it out."""


@cache
def functions() -> list[object]:
    """Return the source, and its code for an interpreter of this very Python, which need not compile it."""
    code = marshal.dumps(compile(SOURCE, _FILE, "exec", dont_inherit=True))
    return [SOURCE, [importlib.util.MAGIC_NUMBER.hex(), base64.b64encode(code).decode()]]
