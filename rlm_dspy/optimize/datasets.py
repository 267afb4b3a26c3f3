"""Reads datasets from JSON Lines, keeps their long texts short in prompts, and exports chats for fine-tuning."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import dspy

from rlm_dspy._dspy_compat import ACTIVE_CALL_ID, BaseCallback, input_names
from rlm_dspy.inputs import Text
from rlm_dspy.optimize.rollouts import that_succeed
from rlm_dspy.optimize.statistics import score_of
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.text import write_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import JsonValue

    from rlm_dspy.optimize.statistics import Metric

    Outputs = Sequence[str | Mapping[str, str | None] | None] | None
    """The replies of an LM, as DSPy tells its callbacks."""


def compact(examples: Iterable[dspy.Example], *, min_chars: int = 2_000) -> list[dspy.Example]:
    """Return examples whose long texts are `Text`s, short in reprs, saved states and prompts.

    Optimizers show examples to models and save them (`MIPROv2` its summary of the dataset, `SIMBA` the inputs of
    a run, a bootstrapped program its demos). A `Text` is shown there as one line; an RLM binds it as the plain
    `str`. An input that goes to another predictor of yours is shown short there too: give such a one a lower
    `min_chars` only if it need not be read.

    Args:
        examples: Any examples. They are not changed. The labels of those that say which fields are inputs stay as
            they are, for metrics.
        min_chars: A `str` of at least this many characters becomes a `Text`.
    """
    return [_wrapped(example, min_chars) for example in examples]


def _wrapped(example: dspy.Example, min_chars: int) -> dspy.Example:
    fields = example.inputs() if input_names(example) is not None else example
    long = {
        name: Text(value) for name, value in fields.items() if isinstance(value, str) and len(value) >= min_chars
    }
    return example.copy(**long) if long else example


def read_examples(path: str | os.PathLike[str], inputs: Sequence[str]) -> list[dspy.Example]:
    """Return the examples of a JSON Lines file: one object on each line, one key for each field.

    A value `{"file": "articles.md"}` stands for a UTF-8 file, relative to the dataset's folder.

    Args:
        path: The file.
        inputs: The names of the input fields; the other keys are labels.

    Raises:
        ValueError: If there is no such file, or it holds no line; if a line is no JSON object, lacks an input, or
            names a file that is not there: the message names the line. If the file is not UTF-8.
    """
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"File not found: {path}.")
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source.name} is not UTF-8: {error}. Save it as UTF-8.") from error
    examples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                examples.append(_read(line, inputs, source.parent))
            except (ValueError, OSError) as error:
                raise ValueError(f"{source.name}, line {number}: {error}") from error
    if not examples:
        raise ValueError(f"{source.name} contains no examples; write one JSON object on each line.")
    return compact(examples)


def _read(line: str, inputs: Sequence[str], folder: Path) -> dspy.Example:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {type(fields).__name__}")  # noqa: TRY004  # of the file's content
    if missing := [name for name in inputs if name not in fields]:
        raise ValueError(f"the input {missing[0]!r} is missing; the fields are {sorted(fields)}")
    return dspy.Example(**{name: _value(value, folder) for name, value in fields.items()}).with_inputs(*inputs)


def _value(value: JsonValue, folder: Path) -> JsonValue | Text:
    if isinstance(value, dict) and set(value) == {"file"}:
        return Text.open(folder / str(value["file"]))
    return value


Each = Literal["call", "run"]


@dataclass
class Chat:
    """One model call.

    Attributes:
        predictor: The predictor that made it, as an object.
        messages: What was sent, then the reply.
        call_id: DSPy's name of the predictor's call that it is part of.
    """

    predictor: dspy.Predict | None
    messages: list[dict[str, Any]]
    call_id: str = ""


@dataclass
class ChatRecorder(BaseCallback):
    """Records the messages and replies of model calls, with the predictor that made each call.

    Put it among the callbacks: `with dspy.context(callbacks=[*dspy.settings.callbacks, recorder])`.

    Attributes:
        chats: The calls that were answered, in the order of their answers. Of a predictor's call that asked again,
            since a reply could not be read, only the last; none of one that failed, or of a turn without code.
    """

    chats: list[Chat] = field(default_factory=list)
    _predictors: dict[str, dspy.Predict] = field(default_factory=dict, repr=False)
    _sent: dict[str, Chat] = field(default_factory=dict, repr=False)

    def on_module_start(self, call_id: str, instance: dspy.Module, inputs: Mapping[str, Any]) -> None:
        """Remember which predictor a call is of."""
        if isinstance(instance, dspy.Predict):
            self._predictors[call_id] = instance

    def on_module_end(
        self, call_id: str, outputs: dspy.Prediction | None, exception: BaseException | None = None
    ) -> None:
        """Forget the predictor, and the replies that it could not use."""
        predictor = self._predictors.pop(call_id, None)
        mine = [chat for chat in self.chats if chat.call_id == call_id]
        no_code = isinstance(predictor, Act) and exception is None and not getattr(outputs, "code", "")
        useless = mine if exception is not None or no_code else mine[:-1]
        self.chats = [chat for chat in self.chats if not any(chat is other for other in useless)]

    def on_lm_start(self, call_id: str, instance: dspy.BaseLM, inputs: Mapping[str, Any]) -> None:
        """Record the messages."""
        messages = inputs.get("messages") or [{"role": "user", "content": inputs.get("prompt") or ""}]
        asking = ACTIVE_CALL_ID.get() or ""
        chat = Chat(self._predictors.get(asking), [dict(message) for message in messages], asking)
        self._sent[call_id] = chat

    def on_lm_end(self, call_id: str, outputs: Outputs, exception: BaseException | None = None) -> None:
        """Append the reply; drop a call that failed."""
        chat = self._sent.pop(call_id)
        reply = _text(outputs)
        if exception is None and reply:
            chat.messages.append({"role": "assistant", "content": reply})
            self.chats.append(chat)


def _text(outputs: Outputs) -> str:
    first = outputs[0] if outputs else ""
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
        path: The file. It is written when all runs have ended, or one is interrupted. An example that raises is
            left out, with a warning.
        metric: `metric(example, prediction, trace=None)`.
        predictor: The name of the predictor, as `named_predictors` has it: `act`, `query`, `subs.claims`,
            `find.act`. A child's calls of it are among them.
        min_score: The least score of a run that is kept.
        each: `"call"` for a line a call; `"run"` for the longest call of each conversation alone, which holds
            the turns before it (as they are shown to the model, not as it wrote them).

    Returns:
        How many lines were written.

    Raises:
        ValueError: If there is no such predictor, or no such `each`.
        Exception: What the last example raised, if all did.
    """
    if each not in get_args(Each):
        raise ValueError(f"each must be one of {get_args(Each)}, not {each!r}.")
    predictors = dict(program.named_predictors())
    if predictor not in predictors:
        raise ValueError(f"Unknown predictor {predictor!r}; choose one of {sorted(predictors)}.")
    asked = predictors[predictor]
    chats: list[list[dict[str, Any]]] = []
    try:
        for of_it in that_succeed(lambda one: _chats_of(program, one, asked, metric, min_score), dataset):
            chats += _longest(of_it) if each == "run" else of_it
    finally:
        lines = "".join(json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in chats)
        write_whole(lines, path)
    return len(chats)


def _chats_of(
    program: dspy.Module, example: dspy.Example, predictor: dspy.Predict, metric: Metric, min_score: float
) -> list[list[dict[str, Any]]]:
    """Run a program once; return the calls of a predictor, none if the run scored too little."""
    recorder = ChatRecorder()
    with dspy.context(callbacks=[*dspy.settings.callbacks, recorder], trace=[]):
        prediction = program(**example.inputs())
        score = score_of(metric(example, prediction, list(dspy.settings.trace)))
    found = [chat.messages for chat in recorder.chats if chat.predictor is predictor]
    return found if score >= min_score else []


def _longest(chats: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Return the chats that no other one goes on from."""
    sent = [chat[:-1] for chat in chats]
    return [
        chat
        for chat, mine in zip(chats, sent, strict=True)
        if not any(len(other) > len(mine) and other[: len(mine)] == mine for other in sent)
    ]
