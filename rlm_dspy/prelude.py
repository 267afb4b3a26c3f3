"""The REPL's side of the functions that model code may call, as source to run in any interpreter."""

from pathlib import Path

HOST_TOOL = "_rlm_call"
"""The one host function that it reaches the host by."""
SOURCES = [
    Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("in_repl.py", "in_repl_dspy.py")
]
"""What is run in a REPL before the first turn; it wants `HOST_TOOL` and the variable `_rlm_given`."""
RUN = """for _rlm_source in _rlm_sources:
    exec(compile(_rlm_source, '<functions>', 'exec', dont_inherit=True), globals())
del _rlm_source, _rlm_sources"""
"""Runs `SOURCES`, bound as `_rlm_sources`: not as a cell, so that tracebacks show the model's lines."""
