"""Defines `SavedSession`, the file of a session."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue

from rlm_dspy.inputs import opened
from rlm_dspy.json_values import jsonable
from rlm_dspy.report.record import Digest, digest_of
from rlm_dspy.sessions.state import SessionState
from rlm_dspy.sessions.variables import Variables
from rlm_dspy.signatures import Environment
from rlm_dspy.subcalls.ad_hoc import written
from rlm_dspy.trajectory import Step
from rlm_dspy.usage import RunUsage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import dspy


class SavedSession(BaseModel):
    """A saved session: what its next call goes on from, without its inputs."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    id: str
    signature: str
    digests: dict[str, Digest] = {}
    """The digests of the session's inputs, by name."""
    messages: list[dict[str, JsonValue]] = []
    """The inputs that each call gave, and its outputs."""
    steps: tuple[Step, ...] = ()
    """The steps of all calls."""
    shown: tuple[Step, ...] = ()
    """The steps as the model is shown them."""
    first: dict[str, Any] | None = None
    """The parts of the first message."""
    ended: str = ""
    """How the last call ended, as the model is told."""
    usage: RunUsage = RunUsage()
    variables: Variables = Variables()

    @classmethod
    def of(
        cls,
        state: SessionState,
        signature: type[dspy.Signature],
        inputs: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        usage: RunUsage,
        variables: Variables,
    ) -> Self:
        """Return what is saved of a session."""
        return cls(
            id=state.id,
            signature=written(signature),
            digests=digests_of(inputs),
            messages=jsonable(messages),
            steps=tuple(state.steps),
            shown=state.shown,
            first=jsonable(state.first.model_dump()) if state.first else None,
            ended=state.ended,
            usage=usage,
            variables=variables,
        )

    def state(self) -> SessionState:
        """Return the state that the session goes on from."""
        return SessionState(
            id=self.id,
            steps=list(self.steps),
            shown=self.shown,
            first=None if self.first is None else Environment.of(self.first),
            ended=self.ended,
            saved=self.variables,
            lost=dict(self.variables.lost),
        )

    def as_json(self) -> str:
        """Return the session as JSON, without the steps' defaults."""
        return json.dumps(jsonable(self.model_dump(mode="json", exclude_defaults=True)), ensure_ascii=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `Session.save` wrote.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is another file.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except ValueError:
            raise ValueError(f"{path} is not a saved session. Open a file that session.save wrote.") from None


class KnownFiles:
    """The files that a session was read from or written to, so that it replaces no other session's answers."""

    def __init__(self) -> None:
        self._content: dict[str, str] = {}

    def note(self, path: str | os.PathLike[str]) -> None:
        """Remember what is in a file now."""
        if content := _content_of(path):
            self._content[os.path.realpath(path)] = content

    def check(self, path: str | os.PathLike[str]) -> None:
        """Raise if a known file has another content by now.

        Raises:
            FileExistsError: If it has.
        """
        known = self._content.get(os.path.realpath(path))
        if known and _content_of(path) not in ("", known):
            raise FileExistsError(
                f"{path} was changed since this session read or wrote it, perhaps by another process. "
                "Save to another file: this one would keep the answers of one of them only."
            )


def _content_of(path: str | os.PathLike[str]) -> str:
    """Return the digest of a file; empty if there is no such file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""


def digests_of(inputs: Mapping[str, Any]) -> dict[str, Digest]:
    """Return the digests of inputs by name; a path stands for its file."""
    known = {name: opened(value) if isinstance(value, Path) else value for name, value in inputs.items()}
    return {name: digest_of(value, 0) for name, value in known.items()}
