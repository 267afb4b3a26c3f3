"""Namespaces and the minimal root: what a worker can see of the system at all.

The standard library only. With real root the namespaces are made with its privilege and the user id is dropped
after; an ordinary user makes a user namespace first.
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from . import kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

NEWNS, NEWUTS, NEWIPC = 0x20000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
_SHARED = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_HERE, _AT_RECURSIVE, _ATTRIBUTES = -100, 0x8000, struct.pack("<QQQQ", 1 | 2 | 4, 0, 0, 0)
_CAPABILITY_HEADER = struct.pack("<II", 0x20080522, 0)
_DAC_OVERRIDE, _DAC_READ_SEARCH = 2, 4

_MOST_LINKS = 40

SCRATCH = "/scratch"
"""In the minimal root: the folder that rules of Landlock name. Each worker mounts its own beneath it."""
OWN_SCRATCH = f"{SCRATCH}/own"


def leave(processes: int) -> None:
    """Leave the host's mounts, network, IPC, host name and process ids; the next child is process 1.

    Args:
        processes: Descriptor of `/proc`.

    Raises:
        OSError: If this system does not allow it.
    """
    if os.geteuid() == 0 and _ids()[1] > 1:
        kernel.unshare(_SHARED)
    else:
        _unshare_as_itself(_SHARED, processes)
    socket.sethostname("worker")


def _ids() -> tuple[int, int]:
    """Return the first of the user ids that this process can have, and how many there are."""
    first, _, count = Path("/proc/self/uid_map").read_text().split()[:3]
    return int(first), int(count)


def unused_uid() -> int | None:
    """Return a user id that root can drop to and nobody uses; None if this is not root, or has only one id.

    Another each time: the kernel counts the processes of a user together.
    """
    first, count = _ids()
    if os.geteuid() != 0 or count == 1:
        return None
    last = min(first + count, 0x7FFF0000) - 2
    return last - random.SystemRandom().randrange(min(60_000, max(1, count // 2)))


def drop_uid(uid: int) -> None:
    """Become user `uid` for good; the privileges of root are put aside, to be given up or partly taken back.

    Raises:
        OSError: If this process is not root.
    """
    kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # or its own /proc/self/uid_map cannot be written


def own_scratch(processes: int, size: int, files: int) -> None:
    """Give this worker a user namespace (its processes are counted alone) and a scratch that no other sees.

    Args:
        processes: Descriptor of `/proc`.
        size: Bytes in the scratch at once.
        files: Files and folders in it at once.

    Raises:
        OSError: If this system does not allow it.
    """
    _unshare_as_itself(NEWNS, processes)
    kernel.mount(
        "scratch", OWN_SCRATCH, "tmpfs", _NOSUID | _NODEV | _NOEXEC, f"size={size},nr_inodes={files},mode=700"
    )
    os.chdir(OWN_SCRATCH)


def _unshare_as_itself(flags: int, processes: int) -> None:
    """Leave namespaces from within a new user namespace, in which the user keeps its id."""
    uid, gid = os.geteuid(), os.getegid()  # afterwards they are not mapped, and so read as nobody's
    kernel.unshare(NEWUSER | flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        file = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=processes)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def keep_reading() -> int:
    """Give up every privilege but one to open files that are another user's.

    Returns:
        The privilege, as a bit.

    Raises:
        OSError: If this process has no such privilege.
    """
    try:
        return set_capabilities(_DAC_READ_SEARCH)
    except OSError:
        return set_capabilities(_DAC_OVERRIDE)


def set_capabilities(kept: int) -> int:
    """Give up every privilege but those of `kept`, a set of bits, and return it.

    Raises:
        OSError: If this process does not have them.
    """
    data = struct.pack("<6I", kept, kept, 0, 0, 0, 0)
    kernel.call("capset", ctypes.c_char_p(_CAPABILITY_HEADER), ctypes.create_string_buffer(data, len(data)))
    return kept


def drop_capabilities(kept: int) -> None:
    """Give up every privilege but `kept` for good, also over what is inside this process's own namespaces.

    Raises:
        OSError: If the kernel refuses.
    """
    for capability in range(64):
        try:
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
        except OSError:
            break
    set_capabilities(kept)
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)


def minimal_root(base: str, readable: Sequence[str], hidden: Sequence[str]) -> None:
    """Make a tmpfs with read-only views of `readable` the root, and leave the old one.

    Args:
        base: An empty folder to build it on.
        readable: Files and folders that stay visible, at the same paths.
        hidden: Folders beneath them that are shown empty, but for what `readable` names in them.

    Raises:
        OSError: If this system does not allow it.
    """
    kernel.mount(None, "/", None, _REC | _PRIVATE)
    kernel.mount("root", base, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    covers = {path for path in map(os.path.realpath, hidden) if Path(path).is_dir()}
    found = {os.path.realpath(path) for path in readable if Path(path).exists()}
    done: set[str] = set()
    for path in sorted(found | covers, key=len):
        around = max((other for other in done if path.startswith(f"{other}/")), key=len, default=None)
        if path in covers:
            _cover(base, path)
        elif around is None or around in covers:
            _show(base, path)
        done.add(path)
    for path in covers:
        _read_only(base + path)
    _links(base, readable)
    Path(base + OWN_SCRATCH).mkdir(parents=True)
    if not Path(base, "tmp").exists():
        Path(base, "tmp").symlink_to(OWN_SCRATCH)
    _enter(base)


def _cover(base: str, path: str) -> None:
    Path(base + path).mkdir(parents=True, exist_ok=True)
    kernel.mount("empty", base + path, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")


def _show(base: str, path: str) -> None:
    target = Path(base + path)
    if Path(path).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    kernel.mount(path, str(target), None, _BIND | _REC)
    if not path.startswith("/dev/"):
        _read_only(str(target))


def _read_only(target: str) -> None:
    path = ctypes.c_char_p(os.fsencode(target))
    kernel.call("mount_setattr", _HERE, path, _AT_RECURSIVE, ctypes.c_char_p(_ATTRIBUTES), len(_ATTRIBUTES))


def _links(base: str, readable: Sequence[str]) -> None:
    """Repeat the links on the way to `readable`: `/lib` is one where libraries are looked for."""
    for path in readable:
        followed = path
        for _ in range(_MOST_LINKS):
            link = next((outer for outer in _ways(followed) if Path(outer).is_symlink()), None)
            if link is None:
                break
            if not os.path.lexists(base + link):
                Path(base + link).parent.mkdir(parents=True, exist_ok=True)
                Path(base + link).symlink_to(Path(link).readlink())
            target = Path(link).parent / Path(link).readlink()
            followed = os.path.normpath(f"{target}{followed[len(link) :]}")


def _ways(path: str) -> list[str]:
    """Return the folders on the way to a path, the outermost first, and itself."""
    return [str(outer) for outer in (*reversed(Path(path).parents), path)][1:]


def _enter(base: str) -> None:
    old = f"{base}/.old"
    Path(old).mkdir()
    kernel.call("pivot_root", ctypes.c_char_p(os.fsencode(base)), ctypes.c_char_p(os.fsencode(old)))
    os.chdir("/")
    kernel.detach("/.old")
    Path("/.old").rmdir()
    kernel.mount(None, "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
