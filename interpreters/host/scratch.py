"""Makes private folders that workers write to, and removes them without following links."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "rlm-repl-"
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """A folder in the one for temporary files that nobody else can list or write to.

    It is locked until it is closed, so that no other process takes it for stale: one in another container may use
    the same folder for temporary files, but cannot see that this process lives.

    Args:
        uid: A user who may pass through it to folders of its own; None for nobody.
    """

    def __init__(self, uid: int | None) -> None:
        self.path = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
        self._held = os.open(self.path, os.O_RDONLY | _FOLDER)
        _lock(self._held)
        if uid is not None:
            Path(self.path).chmod(0o711)

    def close(self) -> None:
        """Remove it."""
        remove_tree(Path(self.path))
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def new_inner(path: str, uid: int | None) -> str:
    """Make a folder for one worker in a `Folder`; with `uid` it is that user's."""
    Path(path).mkdir(mode=0o700)
    if uid is not None:
        os.chown(path, uid, uid, follow_symlinks=False)
    return path


def remove_stale() -> None:
    """Remove the folders that processes which were killed have left; those of other users are left alone."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and not _is_locked(path):
            remove_tree(path, owner=os.geteuid())


def _is_locked(path: Path) -> bool:
    with suppress(OSError), _closing(os.open(path, os.O_RDONLY | _FOLDER)) as folder:
        return not _lock(folder)
    return False


def _lock(folder: int) -> bool:
    """Lock an open folder until it is closed; return whether nobody else has locked it."""
    import fcntl  # noqa: PLC0415 (only on Unix)

    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_tree(root: Path, owner: int | None = None) -> None:
    """Remove a folder that code wrote to: however deep, whatever its permissions.

    Each folder is held open while it is emptied, so that nobody can put a link in its place.

    Args:
        root: The folder. A link is left alone.
        owner: Whose it has to be; None for anybody's.
    """
    with suppress(OSError), _closing(os.open(root.parent, os.O_PATH | os.O_CLOEXEC)) as parent:
        with _closing(_opened(root.name, parent, owner)) as held:
            _empty(held)
        os.rmdir(root.name, dir_fd=parent)


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _opened(name: str, parent: int, owner: int | None = None) -> int:
    """Open a folder to read and empty it, whatever its permissions.

    Raises:
        OSError: If it is a link or no folder, or not the owner's.
    """
    with _closing(os.open(name, os.O_PATH | _FOLDER, dir_fd=parent)) as path:
        if owner is not None and os.fstat(path).st_uid != owner:
            raise PermissionError(f"{name} belongs to another user")
        with suppress(OSError):
            os.chmod(f"/proc/self/fd/{path}", 0o700)  # noqa: PTH101 (of the folder that is open, not of a path)
        return os.open(".", os.O_RDONLY | _FOLDER, dir_fd=path)


def _empty(root: int) -> None:
    """Remove what is in an open folder; folders deeper down are first moved up, or paths would grow too long."""
    waiting = _emptied(root, root)
    while waiting:
        name = waiting.pop()
        with suppress(OSError):
            with _closing(_opened(name, root)) as folder:
                waiting += _emptied(folder, root)
            os.rmdir(name, dir_fd=root)


def _emptied(folder: int, root: int) -> list[str]:
    """Remove the files of an open folder and move its folders to `root`; return the names that they have there."""
    moved = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=folder)
                    continue
                os.close(_opened(entry.name, folder))  # or one that is closed to its owner could not be moved
                name = secrets.token_hex(8)
                os.rename(entry.name, name, src_dir_fd=folder, dst_dir_fd=root)
                moved.append(name)
    return moved
