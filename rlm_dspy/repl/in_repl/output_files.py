"""Hands the host the files that code wrote below `output/`.

Not imported: its source runs after `value_codec.py`, in the same namespace.
"""

import io as _rlm_io
import itertools as _rlm_itertools
import os as _rlm_os
import time as _rlm_time

_RLM_FOLDER = "output"
_RLM_ENTRIES = 1000
_RLM_FLAGS = (
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "O_BINARY",
)  # follow no link, and do not wait for a pipe; some systems lack one of these
_rlm_home = str(_rlm_pathlib.Path.cwd())
_rlm_handed = {}  # size, time and number of each file when it was handed over
_rlm_since = (
    _rlm_time.time_ns() - 20_000_000 if _rlm_in_host else 0
)  # the folder may hold files that code did not write
_rlm_elsewhere_noted = False


def _rlm_flush():
    """Write out what the files hold in memory that variables of code keep open."""
    for value in [*globals().values()]:
        if isinstance(value, _rlm_io.IOBase):
            try:
                value.flush()
            except (OSError, ValueError):  # it is closed
                continue


def _rlm_output_files():
    """Return size, time and number of the files below the folder by name; no link is followed."""
    root, waiting, left, found = _rlm_home + "/" + _RLM_FOLDER, [""], _RLM_ENTRIES, {}
    if _rlm_pathlib.Path(root).is_symlink():
        return found
    while waiting and left > 0:
        inside = waiting.pop()
        try:
            with _rlm_os.scandir(root + "/" + inside) as entries:
                for entry in _rlm_itertools.islice(entries, left):
                    left -= 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(inside + entry.name + "/")
                    elif entry.is_file(follow_symlinks=False):
                        state = entry.stat(follow_symlinks=False)
                        found[inside + entry.name] = (state.st_size, state.st_mtime_ns, state.st_ino)
        except OSError:
            continue
    return found


def _rlm_content(name, most):
    """Return a file's size, and its content in base64 if it is not too large."""
    flags = _rlm_os.O_RDONLY
    for flag in _RLM_FLAGS:
        flags |= getattr(_rlm_os, flag, 0)
    path = _rlm_home + "/" + _RLM_FOLDER + "/" + name
    with _rlm_os.fdopen(_rlm_os.open(path, flags), "rb") as file:
        size = _rlm_os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if size > most or len(data) > most:
        return size, None
    return len(data), _rlm_base64.b64encode(data).decode()


def _rlm_hand_over(keep):
    """Give the host the new and changed files below the folder; return notes for the model."""
    _rlm_flush()
    files, kept, left_out = _rlm_output_files(), [], []
    for name, state in files.items():
        if _rlm_handed.get(name) == state or state[1] < _rlm_since:
            continue
        try:
            size, data = _rlm_content(name, _rlm_given["most_file_bytes"])
        except OSError:
            continue
        why = keep(name=name.encode("utf-8", "backslashreplace").decode(), size=size, data=data)
        _rlm_handed[name] = state
        path = "%s/%s" % (_RLM_FOLDER, name)
        if why:
            left_out.append("%s is not kept: %s." % (path, why))
        else:
            kept.append(path)
    for name in [name for name in _rlm_handed if name not in files]:
        del _rlm_handed[name]
        keep(name=name, size=0, data=None, removed=True)
    notes = ["Kept for the user: %s." % _rlm_some(kept, ", ")] if kept else []
    return [*notes, *([_rlm_some(left_out, " ")] if left_out else []), *_rlm_elsewhere()]


def _rlm_some(items, between):
    more = [] if len(items) <= 5 else ["and %d more" % (len(items) - 5)]
    return between.join([*items[:5], *more])


def _rlm_elsewhere():
    """Return a note, once, if code wrote a file into the working folder of the REPL itself."""
    global _rlm_elsewhere_noted
    if _rlm_in_host or _rlm_elsewhere_noted:
        return []
    try:
        with _rlm_os.scandir(_rlm_home) as entries:
            first = _rlm_itertools.islice(entries, _RLM_ENTRIES)
            names = [
                entry.name for entry in first if entry.is_file(follow_symlinks=False) and entry.name[0] != "."
            ]
    except OSError:
        return []
    _rlm_elsewhere_noted = bool(names)
    return (
        ["%s stays in the REPL; only files below %s/ reach the user." % (min(names), _RLM_FOLDER)] if names else []
    )
