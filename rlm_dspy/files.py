"""Writes files whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from pathlib import Path

_DEVICES = Path("/dev")


def write_whole(text: str, path: str | os.PathLike[str]) -> None:
    """Write a UTF-8 file, whole or not at all; halves of surrogate pairs become `?`.

    A symlink stays: what it points to is written. What is there and is no regular file (a pipe, `/dev/stdout`) is
    written to as it is.

    Args:
        text: What to write.
        path: Of the file; one that is there is replaced.

    Raises:
        OSError: If it cannot be written, or is a link of another user in a folder that anybody may write to. What
            was there before is then still there.
    """
    data, target = text.encode("utf-8", "replace"), Path(path)
    if target.exists() and (not target.is_file() or _DEVICES in target.absolute().parents):
        with target.open("wb") as stream:
            stream.write(data)
        return
    if _is_planted(target):
        raise PermissionError(f"{target} is a link that another user has put there")
    target = target.resolve()
    beside = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
    try:
        with beside.open("xb") as stream:
            if target.exists():
                beside.chmod(stat.S_IMODE(target.stat().st_mode))
            stream.write(data)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _is_planted(path: Path) -> bool:
    """Return whether a path is a link that another user made in a folder like `/tmp`."""
    if sys.platform == "win32" or not path.is_symlink():
        return False
    anybody_writes = path.absolute().parent.stat().st_mode & stat.S_IWOTH
    return bool(anybody_writes) and path.lstat().st_uid not in (0, os.geteuid())
