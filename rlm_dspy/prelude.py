"""The REPL's side of the functions that model code may call, as source to run in any interpreter."""

from pathlib import Path

HOST_TOOL = "_rlm_call"
"""The one host function that it reaches the host by."""
SOURCE = Path(__file__).with_name("in_repl.py").read_text(encoding="utf-8")
"""What is run in a REPL before the first turn; it wants `HOST_TOOL` and the variable `_rlm_given`."""
RUN = "exec(compile(_rlm_source, '<functions>', 'exec', dont_inherit=True), globals())\ndel _rlm_source"
"""Runs `SOURCE`, bound as `_rlm_source`: under a name of its own, so that tracebacks show the model's lines alone."""
