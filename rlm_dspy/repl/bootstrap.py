"""Bundles the source of `in_repl/`, which runs in a new REPL before the first turn."""

import base64
import importlib.util
import marshal
from functools import cache
from pathlib import Path
from types import CodeType

from rlm_dspy.inputs import file_mapping
from rlm_dspy.inputs.tables import view
from rlm_dspy.interpreters.worker import encoder

HOST_TOOL = "_rlm_call"
"""The name of the host function that answers sub-calls."""
READ_TOOL = "_rlm_read"
"""The name of the host function that reads the files of a `Files`."""
KEEP_TOOL = "_rlm_keep_file"
"""The name of the host function that receives files; only in interpreters that take Python objects."""
_FILE = "<functions>"
_HERE = Path(__file__).parent / "in_repl"
_SOURCES = (
    Path(encoder.__file__),
    Path(file_mapping.__file__),
    Path(view.__file__),
    *(_HERE / f"{name}.py" for name in ("value_codec", "output_files", "functions")),
    *(_HERE / f"{name}.py" for name in ("rows", "passages", "records", "dspy_facade", "names")),
)
SOURCE = "\n\n".join(path.read_text(encoding="utf-8") for path in _SOURCES)
"""The files that run in a REPL, in a namespace of their own, before the first turn; they need both tools."""
RUN = f"""
def _rlm_run(source, magic, code, given):
    import base64, builtins, importlib.util, marshal
    if magic != importlib.util.MAGIC_NUMBER.hex():
        code = builtins.compile(source, {_FILE!r}, 'exec', dont_inherit=True)
    if builtins.isinstance(code, builtins.str):
        code = base64.b64decode(code)
    if builtins.isinstance(code, builtins.bytes):
        code = marshal.loads(code)
    own = importlib.util.__builtins__  # Python's: cells may change those that they import
    names, inside = builtins.globals(), {{'__builtins__': own, '__name__': '__main__', '_rlm_given': given}}
    inside['globals'] = lambda: names
    builtins.exec(code, inside)
    names.update({{name: inside[name] for name in ('_rlm_begin', '_rlm_show_notes', '_rlm_made', '_rlm_restore')}})

_rlm_run(*_rlm_functions, _rlm_given)
del _rlm_run, _rlm_functions, _rlm_given
"""
"""Runs the result of `functions`, bound as `_rlm_functions`. It is not a cell, so tracebacks omit it.

Inputs may be bound in the same step, and one of them may be named `str`.
"""
BEGIN = "_rlm_begin()\ndel _rlm_begin\n"
"""Run when the inputs are bound: in the same cell, to avoid a checkpoint between, or in the next one."""
RESTORE_INPUTS = "(lambda names: names.update(names.get('INPUTS', ())))(__import__('builtins').globals())"
"""Run in a REPL of an earlier run: restores the inputs, whatever code did to their names."""
SHOW_NOTES = "_rlm_show_notes()"
"""Run after each cell, in interpreters that do not call `rlm_dspy.interpreters.worker.cell.HOOK`."""


@cache
def functions(form: type[CodeType | bytes | str] = str) -> list[object]:
    """Return the source, the Python version of the compiled code, and that code.

    Args:
        form: The form that the interpreter accepts: the code itself, its bytes, or their base64.
    """
    code = compile(SOURCE, _FILE, "exec", dont_inherit=True)
    raw = marshal.dumps(code)
    forms: dict[type, object] = {CodeType: code, bytes: raw, str: base64.b64encode(raw).decode()}
    return [SOURCE, importlib.util.MAGIC_NUMBER.hex(), forms[form]]
