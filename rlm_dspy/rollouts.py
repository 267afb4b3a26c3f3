"""Finished runs of a compile, kept on disk so that the same compile goes on after a kill."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from pydantic_core import to_jsonable_python

from rlm_dspy.demos import Demo
from rlm_dspy.inputs import plain
from rlm_dspy.trajectory import Trajectory

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

FILE = "rollouts.jsonl"
Found = dict[str, list[Demo]]


class Rollouts:
    """What each finished example gave, by example; on disk if a folder is given.

    An example that failed is not kept: it is run again.

    Args:
        folder: Where the file `rollouts.jsonl` is; None keeps nothing.
        key: What the runs depend on beside the example; see `key_of`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, key: str) -> None:
        self._path = Path(folder) / FILE if folder is not None else None
        self._key = key
        self._lock = threading.Lock()
        self._known: dict[str, Found] = {}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._known = self._read(self._path) if self._path.exists() else {}

    def get(self, example: dspy.Example, run: Callable[[], Found | None]) -> Found:
        """Return what an example gave; if it is not known, by running it. Nothing if it failed."""
        if self._path is None:
            return run() or {}
        name = digest(self._key, example)
        if name in self._known:
            return self._known[name]
        found = run()
        if found is None:
            return {}
        line = json.dumps(
            {"example": name, "demos": {n: [_dumped(d) for d in demos] for n, demos in found.items()}}
        )
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return found

    @staticmethod
    def _read(path: Path) -> dict[str, Found]:
        """Return what the file holds; a line that a kill cut short is left out."""
        known = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                kept = json.loads(line)
            except ValueError:
                continue
            known[kept["example"]] = {n: [_loaded(d) for d in demos] for n, demos in kept["demos"].items()}
        return known


def key_of(program: dspy.Module, lm: Any, *settings: Any) -> str:
    """Return what the runs of a compile depend on: the program, what it has learned, the model, the settings."""
    learned = [(name, p.signature.dump_state(), p.demos) for name, p in program.named_predictors()]
    return digest(type(program).__qualname__, learned, getattr(lm, "model", ""), settings)


def digest(*parts: Any) -> str:
    """Return a short name of values: equal values have the same, across processes."""
    hashed = hashlib.sha256()
    for part in parts:
        data = {name: plain(value) for name, value in part.items()} if isinstance(part, dspy.Example) else part
        hashed.update(json.dumps(to_jsonable_python(data, fallback=repr), sort_keys=True).encode())
    return hashed.hexdigest()[:24]


def _dumped(demo: Demo) -> dict[str, Any]:
    fields = to_jsonable_python(dict(demo.example.items()), fallback=repr)
    return {**vars(demo), "example": fields}


def _loaded(kept: dict[str, Any]) -> Demo:
    fields = kept["example"]
    if "trajectory" in fields:
        fields["trajectory"] = Trajectory.model_validate(fields["trajectory"])
    return Demo(**{**kept, "example": dspy.Example(**fields)})
