"""Sets up what attacks aim at and runs them all: `python attacked.py <layers> <user>`, as root or as somebody else.

Prints JSON: the attacks that did harm, and what stopped the others.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

ORDINARY = 54_321
CANARY = "canary-5d1f0c2e"
_QUIET = ("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
"""DSPy imports anyio, which is a plugin of pytest as well, before pytest looks for its plugins."""


def open_python() -> None:
    """Let everybody read this Python, in this process's own mounts only: what leads there may be closed (`/root`)."""
    from rlm_dspy.interpreters.confinement import kernel

    kernel.unshare(0x20000)
    kernel.mount(None, "/", None, 16384 | (1 << 18))
    folders = {sys.base_prefix, sys.prefix, str(Path(__file__).resolve().parent.parent)}
    closed_above = {folder: _closed_above(Path(folder)) for folder in sorted(map(os.path.realpath, folders))}
    asides = {folder: tempfile.mkdtemp() for folder, closed in closed_above.items() if closed}
    for folder, aside in asides.items():
        kernel.mount(folder, aside, None, 4096 | 16384)
    for closed in sorted({str(closed) for closed in closed_above.values() if closed}):
        kernel.mount("open", closed, "tmpfs", 0, "mode=755")
    for folder, aside in asides.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        kernel.mount(aside, folder, None, 4096 | 16384)


def _closed_above(folder: Path) -> Path | None:
    """Return the outermost folder on the way that others may not pass."""
    return next((path for path in reversed(folder.parents) if not path.stat().st_mode & 0o001), None)


def become_ordinary() -> None:
    """Drop from root to a user of no privilege."""
    from rlm_dspy.interpreters.confinement import kernel

    os.setgroups([])
    os.setresgid(ORDINARY, ORDINARY, ORDINARY)
    os.setresuid(ORDINARY, ORDINARY, ORDINARY)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)


def targets(stack: ExitStack) -> dict[str, Any]:
    """Make everything that attacks aim at."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder.chmod(0o777)
    for name in ("secret", "writable", "doomed"):
        (folder / name).write_text(CANARY)
        (folder / name).chmod(0o666)
    library = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    library.chmod(0o777)
    (library / "rlm_attack_library.py").write_text("x = 1")
    (library / "rlm_attack_library.py").chmod(0o666)
    (folder / "a_link").symlink_to("secret")
    with zipfile.ZipFile(folder / "zipped.zip", "w") as archive:
        archive.writestr("zipped.py", "x = 'inside_a_zip'")
    search = stack.enter_context(tempfile.TemporaryDirectory(prefix="search-"))
    sys.path.append(search)
    dev_shm = stack.enter_context(tempfile.NamedTemporaryFile("w", dir="/dev/shm"))
    dev_shm.write(CANARY)
    dev_shm.flush()
    os.chmod(dev_shm.name, 0o644)
    inherited = os.open(folder / "secret", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    victim = subprocess.Popen(["sh", "-c", "trap '' USR1; exec sleep 1000"], stdout=subprocess.DEVNULL)
    stack.callback(victim.wait)
    stack.callback(victim.kill)
    held = ctypes.create_string_buffer(CANARY.encode())
    stack.callback(lambda: held)
    import dspy

    return {
        "canary": CANARY,
        "folder": str(folder),
        "secret": str(folder / "secret"),
        "writable": str(folder / "writable"),
        "doomed": str(folder / "doomed"),
        "a_link": str(folder / "a_link"),
        "zip": str(folder / "zipped.zip"),
        "search": search,
        "python": sys.executable,
        "host_name": os.uname().nodename,
        "library": str(library),
        "own_library_file": str(library / "rlm_attack_library.py"),
        "source": __file__,
        "package": dspy.__file__,
        "dev_shm": dev_shm.name,
        "host": os.getpid(),
        "host_address": ctypes.addressof(held),
        "victim": victim.pid,
        **listeners(stack, folder),
    }


def listeners(stack: ExitStack, folder: Path) -> dict[str, Any]:
    """Open one socket of each kind that a cell might reach."""
    tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    udp.bind(("127.0.0.1", 0))
    abstract = f"\0rlm-attack-{os.getpid()}"
    for kind, address in (
        (socket.SOCK_STREAM, str(folder / "unix")),
        (socket.SOCK_DGRAM, str(folder / "unix_datagram")),
        (socket.SOCK_STREAM, abstract),
    ):
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
    (folder / "unix").chmod(0o777)
    (folder / "unix_datagram").chmod(0o777)
    return {
        "tcp": tcp.getsockname()[1],
        "udp": udp.getsockname()[1],
        "unix": str(folder / "unix"),
        "unix_datagram": str(folder / "unix_datagram"),
        "abstract": abstract,
    }


def attempt(interpreter: Any, name: str, aims: dict[str, Any]) -> str:
    """Make one attempt; "" if it did harm, else what stopped it."""
    import dspy

    from tests import attacks

    try:
        with interpreter:
            code = "1 == 1" if name == "control" else attacks.source(name)
            shown = interpreter.execute(code, {"targets": aims})
    except dspy.CodeInterpreterError as error:
        return str(error).splitlines()[-1]
    return "" if str(shown).endswith("True") else f"gave {shown}"


def main() -> None:
    """Run all attacks, print what came of them."""
    layers, user = sys.argv[1:3]
    if os.getuid() == 0:
        open_python()
        if user == "ordinary":
            become_ordinary()
    if layers == "pytest":
        os.chdir(Path(__file__).parent.parent)
        raise SystemExit(
            pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *_QUIET, *sys.argv[3:]])
        )
    from rlm_dspy.interpreters.confinement.limits import WorkerLimits
    from rlm_dspy.interpreters.confinement_policy import GUARANTEES, ConfinementPolicy
    from rlm_dspy.interpreters.host.deadlines import CellLimits
    from rlm_dspy.interpreters.local import LocalPythonInterpreter
    from rlm_dspy.interpreters.python import PythonInterpreter
    from tests import attacks, further_attacks

    chosen = frozenset(layers.split("+")) - {"none", "local"}
    limits = WorkerLimits(
        memory_bytes=128 << 20, max_processes=48, scratch_bytes=16 << 20, scratch_files=2_000, max_open_files=128
    )
    os.environ["RLM_CANARY"] = CANARY
    results = {}
    with ExitStack() as stack:
        aims = targets(stack)
        aims |= {"processes": 80, "memory": 256 << 20, "address_space": 3 << 30, "scratch": 32 << 20}
        aims |= {"open_files": 100, "files": 4_000, "signals": "landlock" in chosen or not chosen}
        policy = ConfinementPolicy(**dict.fromkeys(GUARANTEES, False), layers=chosen)
        tried = [*attacks.ATTACKS, *further_attacks.FURTHER]
        chosen_attacks = [name for name in tried if layers != "local" or name.startswith("secrets")]
        for name in ["control", *chosen_attacks]:
            if layers == "local":
                interpreter: Any = LocalPythonInterpreter()
            else:
                interpreter = PythonInterpreter(
                    confinement=policy,
                    worker_limits=limits,
                    packages=(),
                    paths=(aims["library"],),
                    cell_limits=CellLimits(seconds=60),
                )
            results[name] = attempt(interpreter, name, aims)
            for left in ("new", "made", "link", "hard", "pipe", "device", "own.sock"):
                path = Path(aims["folder"], left)
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            Path(aims["doomed"]).touch()
            if not Path(aims["secret"]).exists():
                Path(aims["secret"]).write_text(CANARY)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
