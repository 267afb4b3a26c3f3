"""Writes files whole or not at all."""

from __future__ import annotations

import os
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
        OSError: If it cannot be written. What was there before is then still there.
    """
    data, target = text.encode("utf-8", "replace"), Path(path)
    if target.exists() and (not target.is_file() or _DEVICES in target.absolute().parents):
        with target.open("wb") as stream:
            stream.write(data)
        return
    target = target.resolve()
    beside = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(data)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
