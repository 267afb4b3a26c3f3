"""Other places to run code at: this machine through ssh, and sandboxes of bubblewrap and nsjail."""

from __future__ import annotations

import atexit
import getpass
import shutil
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

from rlm_dspy.interpreters import remote

PYTHON = "/usr/bin/python3"
"""Of the system: in a sandbox, root's own may lie in a folder that others cannot pass through."""
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
BWRAP = shutil.which("bwrap")
NSJAIL = shutil.which("nsjail")


def _is_new() -> bool:
    asked = "import sys; sys.exit(sys.version_info < (3, 11))"
    return Path(PYTHON).exists() and not subprocess.run([PYTHON, "-c", asked], check=False).returncode


needs_sshd = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and _is_new()), reason="needs sshd, ssh and a Python 3.11 of the system"
)
needs_bwrap = pytest.mark.skipif(not (BWRAP and _is_new()), reason="needs bwrap and a Python 3.11 of the system")
needs_nsjail = pytest.mark.skipif(
    not (NSJAIL and _is_new()), reason="needs nsjail and a Python 3.11 of the system"
)


@cache
def ssh_command() -> tuple[str, ...]:
    """Start an sshd of this user on 127.0.0.1, until the tests end; return the command that reaches it."""
    folder = Path(tempfile.mkdtemp(prefix="rlm-sshd-"))
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "keys").write_text((folder / "user.pub").read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"HostKey": folder / "host", "AuthorizedKeysFile": folder / "keys", "ListenAddress": "127.0.0.1"}
    options |= {"Port": port, "StrictModes": "no", "UsePAM": "no", "PidFile": "none", "PermitRootLogin": "yes"}
    (folder / "sshd").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", folder / "sshd"], stderr=subprocess.DEVNULL)
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.kill)
    for _ in range(100):
        with socket.socket() as probe:
            probe.settimeout(0.1)
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    told = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": folder / "known",
        "LogLevel": "ERROR",
    }
    given = [part for name, value in told.items() for part in ("-o", f"{name}={value}")]
    return (
        "ssh",
        "-F",
        "none",
        "-p",
        str(port),
        "-i",
        str(folder / "user"),
        *given,
        f"{getpass.getuser()}@127.0.0.1",
    )


@cache
def through_ssh() -> remote.Box:
    """Return a box that is this machine, through ssh."""
    return remote.argv(*ssh_command(), shell=True, python=PYTHON)


@cache
def sandboxed() -> remote.Box:
    """Return a box in bubblewrap: the files of this machine, read-only, its own /tmp and processes, no network."""
    mounts = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp")
    return remote.argv(str(BWRAP), *mounts, "--unshare-all", "--die-with-parent", python=PYTHON)


@cache
def jailed() -> remote.Box:
    """Return a box in nsjail: the files of this machine, read-only, its own /tmp and processes, no network."""
    mounts = ("--chroot", "/", "--tmpfsmount", "/tmp", "--env", "PATH=/usr/bin:/bin")
    return remote.argv(str(NSJAIL), "-Mo", "-Q", *mounts, "--disable_rlimits", "--", python=PYTHON)
