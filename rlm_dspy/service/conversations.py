"""Keeps conversations: requests of one client that share a session of the program."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any, Literal

import dspy
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.sessions.kept import Kept

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlm_dspy.service.requests import Ask
    from rlm_dspy.sessions import Session

_MOST_REQUESTS = 500
"""Of one conversation, whose turns are all kept."""


class ConversationBody(BaseModel):
    """The body of `POST /v1/conversations`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metadata: dict[str, str] | None = None


class Begun(BaseModel):
    """A conversation, as clients are told of it."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str] = {}


class Deleted(BaseModel):
    """A conversation that was closed."""

    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


class Conversation:
    """A session of the program, with limits of its own and the files of its inputs.

    Args:
        program: The program.
        begun: What clients are told of it.
    """

    def __init__(self, program: RLM, begun: Begun) -> None:
        self.begun = begun
        self.rlm: RLM = program.deepcopy()
        self.session: Session = self.rlm.session()
        self._files = contextlib.ExitStack()
        self._requests = 0

    @property
    def known(self) -> list[str]:
        """The inputs that it has; what was said is the history."""
        fields = self.rlm.signature.input_fields.items()
        return [*self.session.inputs, *(name for name, field in fields if field.annotation is dspy.History)]

    def take(self, inputs: Mapping[str, Any], ask: Ask, files: contextlib.ExitStack) -> None:
        """Keep the inputs of a request for the next ones, but the question.

        Args:
            inputs: The inputs.
            ask: The request.
            files: Closes what the inputs need; it is kept as long as they are.

        Raises:
            InvalidInputs: If the conversation is too long.
        """
        self._requests += 1
        if self._requests > _MOST_REQUESTS:
            raise InvalidInputs(f"The conversation has had its {_MOST_REQUESTS} requests. Begin another.")
        if any(part.kind == "file" for message in ask.messages for part in message.attachments):
            self._files.close()
            self._files = files.pop_all()
        question = ask.messages[-1].text
        self.session.inputs.update({name: value for name, value in inputs.items() if value is not question})

    def close(self) -> None:
        """Close the session and remove the files."""
        self.session.close()
        self._files.close()


class Conversations:
    """Keeps the conversations of all clients.

    Args:
        program: The program.
        most: How many are kept; the one that was not used for longest is closed for another.
        idle_seconds: How long each is kept after its last use.
    """

    def __init__(self, program: dspy.Module, most: int, idle_seconds: float) -> None:
        self._program = program
        self._kept = Kept[tuple[bytes, str], Conversation](most, idle_seconds)

    def begin(self, owner: bytes, body: ConversationBody) -> Begun:
        """Begin a conversation, which only its owner can use.

        Raises:
            HTTPException: If the program cannot keep any.
        """
        if not isinstance(self._program, RLM) or self._program.compute.votes > 1:
            raise HTTPException(400, "The program keeps no conversations: it must be an RLM without votes.")
        name = f"conv_{secrets.token_hex(16)}"
        begun = Begun(id=name, created_at=int(time.time()), metadata=body.metadata or {})
        self._kept.add((owner, name), Conversation(self._program, begun))
        return begun

    def get(self, owner: bytes, name: str) -> Begun:
        """Return a conversation of this owner.

        Raises:
            ConversationGone: If there is none.
        """
        return self._kept.get((owner, name)).begun

    def delete(self, owner: bytes, name: str) -> Deleted:
        """Close a conversation of this owner.

        Raises:
            ConversationGone: If there is none.
            ConversationBusy: If a request of it is being answered.
        """
        self._kept.discard((owner, name))
        return Deleted(id=name)

    @contextlib.contextmanager
    def using(self, owner: bytes, name: str) -> Iterator[Conversation | None]:
        """Use a conversation of this owner in this scope; None without a name.

        Raises:
            ConversationGone: If there is none.
            ConversationBusy: If a request of it is being answered.
        """
        if not name:
            yield None
            return
        with self._kept.using((owner, name)) as conversation:
            yield conversation

    async def close(self) -> None:
        """Close all."""
        await self._kept.close()
