"""Defines `Conversations`: the sessions of the MCP server's clients, each with its last run."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

import anyio
import dspy
from pydantic import BaseModel, ConfigDict, JsonValue

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.events import Event, Listener, TurnEvent
from rlm_dspy.json_values import jsonable
from rlm_dspy.observe.console import Lines, Reporter
from rlm_dspy.report.formatting import used
from rlm_dspy.sessions.kept import Kept
from rlm_dspy.text import clip
from rlm_dspy.trajectory import KINDS
from rlm_dspy.usage import RunUsage

if TYPE_CHECKING:
    from rlm_dspy.inputs import Files, Text
    from rlm_dspy.loop.rlm import RLM
    from rlm_dspy.sessions import Session

_MOST_CONVERSATIONS, _IDLE_SECONDS = 8, 3_600.0
"""The limits of open conversations, each of which keeps a REPL; see `Kept`."""
_MOST_RUNS = 4
"""Concurrent runs."""
_ANSWER_CHARS, _REPORT_CHARS = 50_000, 100_000
OnTurn = Callable[[int, str], None]
"""Called after each turn with its number and its result, in words."""


class Answer(BaseModel):
    """The answer to a question, and the usage of its run."""

    model_config = ConfigDict(use_attribute_docstrings=True)  # clients see them

    conversation: str
    """For go_on and report."""
    outputs: dict[str, JsonValue]
    """The answer by field; a long one is shortened."""
    stop: str
    """submitted; extracted: read from the turns after the last one; unanswered."""
    turns: int
    cost: float | None
    """In US dollars; None if it is not known."""
    seconds: float


@dataclass
class _Conversation:
    session: Session
    report: StringIO = field(default_factory=StringIO)

    def close(self) -> None:
        self.session.close()


class Conversations:
    """Asks an RLM for clients, in a session for each conversation.

    Args:
        rlm: The RLM. Its inputs are a question and at most one other.
        lm: The LM of its turns.
    """

    def __init__(self, rlm: RLM, lm: dspy.BaseLM) -> None:
        self._rlm, self._lm = rlm, lm
        fields = list(rlm.signature.input_fields)
        self.question = "question" if "question" in fields else fields[-1]
        """The name of the input field for the question."""
        others = [name for name in fields if name != self.question]
        if len(others) != 1:
            raise InvalidInputs(f"The signature must take the files and a question, not {fields}.")
        self._source = others[0]
        self._kept = Kept[str, _Conversation](_MOST_CONVERSATIONS, _IDLE_SECONDS)
        self._free = asyncio.Semaphore(_MOST_RUNS)

    async def begin(self, source: Files | Text, question: str, on_turn: OnTurn) -> Answer:
        """Ask about files in a new conversation.

        Args:
            source: The files, or the text.
            question: The question.
            on_turn: See `OnTurn`.

        Raises:
            Exception: The error of the run.
        """
        name = secrets.token_hex(8)  # other clients must not guess it
        async with self._free:
            inputs: dict[str, Any] = {self._source: source}
            self._kept.add(name, _Conversation(self._rlm.session(**inputs)))
            return await self._ask(name, question, on_turn)

    async def go_on(self, name: str, question: str, on_turn: OnTurn) -> Answer:
        """Ask again in a conversation.

        Raises:
            ConversationGone: If there is no conversation of this name.
            ConversationBusy: If it is still answering a question.
            Exception: The error of the run.
        """
        async with self._free:
            return await self._ask(name, question, on_turn)

    def report(self, name: str) -> str:
        """Return the turns of a conversation's last run as text, even if the run failed or has not ended.

        Raises:
            ConversationGone: If there is no conversation of this name.
        """
        return clip(self._kept.get(name).report.getvalue(), _REPORT_CHARS)

    async def close(self) -> None:
        """Close all sessions."""
        await self._kept.close()

    async def _ask(self, name: str, question: str, on_turn: OnTurn) -> Answer:
        with self._kept.using(name) as conversation:
            conversation.report = StringIO()
            view = Lines(conversation.report)
            view.head(question, self._lm.model)
            listeners = [Reporter(view, self._rlm.limits.max_iters), _Turns(on_turn)]
            with dspy.context(lm=self._lm, callbacks=listeners, disable_history=True, trace=[]):  # both would grow
                run = asyncio.create_task(conversation.session.acall(**{self.question: question}))
            try:
                prediction = await asyncio.shield(run)
            except asyncio.CancelledError:
                run.cancel()
                with anyio.CancelScope(shield=True):  # wait until the run has stopped its code and its calls
                    await asyncio.wait([run])
                raise
            usage = RunUsage.model_validate(prediction.usage)
            view.end(f"{prediction.stop}, {used(usage, usage.seconds)}", answered=prediction.stop != "unanswered")
        outputs = jsonable({name: prediction.get(name) for name in self._rlm.signature.output_fields})
        return Answer(
            conversation=name,
            outputs=_short(outputs),
            stop=prediction.stop,
            turns=len(prediction.trajectory),
            cost=usage.cost,
            seconds=round(usage.seconds, 1),
        )


class _Turns(Listener):
    """Reports each turn of the root run."""

    def __init__(self, on_turn: OnTurn) -> None:
        self._on_turn = on_turn

    def on_event(self, event: Event) -> None:
        if isinstance(event, TurnEvent) and event.phase == "ended" and event.depth == 0 and event.step:
            self._on_turn(event.turn or 0, KINDS[event.step.kind].label)


def _short(outputs: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return outputs that fit an answer; long ones as shortened text."""
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in outputs.items()}
    if sum(map(len, texts.values())) <= _ANSWER_CHARS:
        return outputs
    plain = {name: value if isinstance(value, str) else texts[name] for name, value in outputs.items()}
    return {name: clip(text, _ANSWER_CHARS // len(plain)) for name, text in plain.items()}
