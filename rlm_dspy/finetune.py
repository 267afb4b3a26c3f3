"""Data for fine-tuning: the very messages that a model saw and what it wrote, of runs that went well."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dspy
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from rlm_dspy.scores import score_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from rlm_dspy.scores import Metric

Each = Literal["call", "run"]


@dataclass
class Chat:
    """One model call.

    Attributes:
        predictor: The predictor that made it, as an object.
        messages: What was sent, then the reply.
    """

    predictor: Any
    messages: list[dict[str, Any]]


@dataclass
class ChatRecorder(BaseCallback):
    """Listens to model calls and keeps what was sent and answered, with the predictor that asked.

    Put it among the callbacks: `with dspy.context(callbacks=[*dspy.settings.callbacks, recorder])`.

    Attributes:
        chats: The calls that were answered, in the order of their answers.
    """

    chats: list[Chat] = field(default_factory=list)
    _predictors: dict[str, Any] = field(default_factory=dict, repr=False)
    _sent: dict[str, tuple[Any, list[dict[str, Any]]]] = field(default_factory=dict, repr=False)

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Remember which predictor a call is of."""
        if isinstance(instance, dspy.Predict):
            self._predictors[call_id] = instance

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Forget it."""
        self._predictors.pop(call_id, None)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Keep what is sent."""
        messages = inputs.get("messages") or [{"role": "user", "content": inputs.get("prompt") or ""}]
        self._sent[call_id] = self._predictors.get(ACTIVE_CALL_ID.get()), [dict(message) for message in messages]

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Put the reply behind it; a call that failed is dropped."""
        predictor, messages = self._sent.pop(call_id)
        reply = _text(outputs)
        if exception is None and reply:
            self.chats.append(Chat(predictor, [*messages, {"role": "assistant", "content": reply}]))


def _text(outputs: Any) -> str:
    first = outputs[0] if isinstance(outputs, list) and outputs else outputs
    return str((first.get("text") if isinstance(first, dict) else first) or "")


def export_chats(
    program: dspy.Module,
    dataset: Sequence[dspy.Example],
    path: str | os.PathLike[str],
    *,
    metric: Metric,
    predictor: str = "act",
    min_score: float = 1.0,
    each: Each = "call",
) -> int:
    """Run a program on a dataset, and write the calls of one predictor in runs that scored enough as chat JSONL.

    A line is `{"messages": [...]}`: what was sent, to the letter, then the reply as the model wrote it.

    Args:
        program: The program.
        dataset: The examples.
        path: The file. It is written when all runs have ended.
        metric: `metric(example, prediction, trace=None)`.
        predictor: The name of the predictor, as `named_predictors` has it: `act`, `query`, `subs.claims`,
            `find.act`. A child's calls of it are among them.
        min_score: The least score of a run that is kept.
        each: `"call"` for a line a call; `"run"` for the longest call of each conversation alone, which holds
            the turns before it (as they are shown to the model, not as it wrote them).

    Returns:
        How many lines were written.

    Raises:
        ValueError: If there is no such predictor.
    """
    predictors = dict(program.named_predictors())
    if predictor not in predictors:
        raise ValueError(f"There is no predictor {predictor!r}; there are {sorted(predictors)}.")
    chats: list[list[dict[str, Any]]] = []
    for example in dataset:
        recorder = ChatRecorder()
        with dspy.context(callbacks=[*dspy.settings.callbacks, recorder], trace=[]):
            prediction = program(**example.inputs())
            score = score_of(metric(example, prediction, list(dspy.settings.trace)))
        if score >= min_score:
            of_it = [chat.messages for chat in recorder.chats if chat.predictor is predictors[predictor]]
            chats += _longest(of_it) if each == "run" else of_it
    lines = "".join(json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in chats)
    Path(path).write_text(lines, encoding="utf-8")
    return len(chats)


def _longest(chats: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Return the chats that no other one goes on from."""
    sent = [chat[:-1] for chat in chats]
    return [
        chat
        for chat, mine in zip(chats, sent, strict=True)
        if not any(len(other) > len(mine) and other[: len(mine)] == mine for other in sent)
    ]
