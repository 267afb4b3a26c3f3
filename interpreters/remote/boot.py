"""What is sent to a far end before it runs: a zip of the modules that run there."""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

_FILES = (
    "confinement/*.py",
    "worker/*.py",
    "confinement_policy.py",
    "diagnosis.py",
    "host/__init__.py",
    "host/deadlines.py",
    "host/fork_server_client.py",
    "host/packages.py",
    "host/processes.py",
    "host/scratch.py",
    "host/worker_connection.py",
    "host/worker_group.py",
    "remote/far_end.py",
    "remote/relay.py",
)
"""What runs at the far end, of this package."""

BOOT = """
import io, os, sys, tempfile, types, zipfile
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or later is needed there, and this is " + sys.version.split()[0])
def take(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            sys.exit(1)
        data += piece
    return data
modules = take(int(sys.argv[1]))
folder = tempfile.mkdtemp(prefix="rlm-repl-%d-" % os.getpid())
zipfile.ZipFile(io.BytesIO(modules)).extractall(folder)
sys.path[:] = [path for path in sys.path if path]
for name, place in ("rlm_dspy", ""), ("rlm_dspy.interpreters", ""), ("rlm_dspy.interpreters.remote", "/remote"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder + place]
from rlm_dspy.interpreters.remote import far_end
far_end.main(folder)
"""
"""The program of the command: it reads a zip of the modules from stdin, and runs them."""


@functools.cache
def modules() -> bytes:
    """Return a zip of the modules that run at the far end."""
    made, root = io.BytesIO(), Path(__file__).parents[1]
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for pattern in _FILES:
            for path in root.glob(pattern):
                archive.write(path, path.relative_to(root))
    return made.getvalue()
