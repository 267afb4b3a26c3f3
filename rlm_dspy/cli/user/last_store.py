"""Remembers the MLflow store of the last traced run, for `rlm-dspy ui` in another folder."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rlm_dspy.cli.user.history import history_folder

_SQLITE = "sqlite:///"


def _note() -> Path:
    return history_folder().with_name("last_store")


def remember_store(store: str) -> None:
    """Remember a store if it is a file; the address of a server may contain a password."""
    if store.startswith(_SQLITE):
        with contextlib.suppress(OSError):  # the run goes on without it
            _note().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _note().write_text(str(Path(store.removeprefix(_SQLITE)).absolute()), encoding="utf-8")


def last_store() -> Path | None:
    """Return the file of the last traced run's store; None if it no longer exists."""
    with contextlib.suppress(OSError):
        path = Path(_note().read_text(encoding="utf-8"))
        return path if path.is_file() else None
    return None
