"""Reads datasets from JSON Lines, shortens their long texts in prompts, and exports chats for fine-tuning."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import dspy

from rlm_dspy._dspy_compat import ACTIVE_CALL_ID, BaseCallback, input_names
from rlm_dspy.inputs import MEDIA, Files, Table, Text
from rlm_dspy.optimize.rollouts import run_each
from rlm_dspy.optimize.statistics import score_of
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.repl.coercion import read_value
from rlm_dspy.text import check_writable, write_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pydantic import JsonValue

    from rlm_dspy.optimize.statistics import Metric
    from rlm_dspy.optimize.traced_runs import Trace

    Chat = list[dict[str, Any]]
    """The messages of a call, then the reply."""
    Outputs = Sequence[str | Mapping[str, str | None] | None] | None
    """The outputs of an LM, as passed to DSPy's callbacks."""


def compact(examples: Iterable[dspy.Example], *, min_chars: int = 2_000) -> list[dspy.Example]:
    """Return examples whose long texts are `Text`s, short in reprs, saved states and prompts.

    Optimizers show examples to models and save them (`MIPROv2` in its dataset summary, `SIMBA` the inputs of
    a run, a bootstrapped program in its demos). A `Text` is shown there as one line; an RLM binds it as a plain
    `str`. Your other predictors also get the short form, so lower `min_chars` only if they need not read
    the text.

    Args:
        examples: Any examples; they are not changed. Labels of examples with inputs set are kept
            unchanged, for metrics.
        min_chars: A `str` of at least this many characters becomes a `Text`, also in lists, tuples and dicts.
    """
    wrapped = []
    for example in examples:
        fields = example if input_names(example) is None else example.inputs()
        short = {name: _compacted(value, min_chars) for name, value in fields.items()}
        long = {name: value for name, value in short.items() if value is not fields[name]}
        wrapped.append(example.copy(**long) if long else example)
    return wrapped


def _compacted(value: Any, min_chars: int) -> Any:
    """Return a value with its long texts wrapped; the value itself if it has none."""
    if isinstance(value, str):
        return Text(value) if len(value) >= min_chars else value
    if type(value) not in (list, tuple, dict):
        return value
    parts = list(value.values() if isinstance(value, dict) else value)
    shorter = [_compacted(part, min_chars) for part in parts]
    if all(new is old for new, old in zip(shorter, parts, strict=True)):
        return value
    return dict(zip(value, shorter, strict=True)) if isinstance(value, dict) else type(value)(shorter)


def read_examples(
    path: str | os.PathLike[str],
    inputs: Sequence[str],
    optional: Collection[str] = (),
    types: Mapping[str, Any] | None = None,
) -> list[dspy.Example]:
    """Return the examples of a JSON Lines file: one object per line, one key per field.

    A value `{"file": "articles.md"}` stands for a UTF-8 file, relative to the dataset's folder; for a table or a
    folder if its field has the type `Table` or `Files`.

    Args:
        path: The file.
        inputs: The names of the input fields; the other keys are labels.
        optional: The inputs that a line may omit because they have a default.
        types: The types of inputs, into which their values are read; default: as JSON has them.

    Raises:
        ValueError: If the file does not exist or is empty; if a line is not a JSON object, lacks an input, has one
            of another type, or names a missing file (the message names the line); if the file is not UTF-8.
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
                examples.append(_read(line, inputs, optional, types or {}, source.parent))
            except (ValueError, OSError) as error:
                raise ValueError(f"{source.name}, line {number}: {error}") from error
    if not examples:
        raise ValueError(f"{source.name} contains no examples; write one JSON object on each line.")
    return compact(examples)


def _read(
    line: str, inputs: Sequence[str], optional: Collection[str], types: Mapping[str, Any], folder: Path
) -> dspy.Example:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {type(fields).__name__}")  # noqa: TRY004  # an error in the file
    if missing := [name for name in inputs if name not in fields and name not in optional]:
        raise ValueError(f"the input {missing[0]!r} is missing; the fields are {sorted(fields)}")
    example = dspy.Example(**{name: _value(name, value, folder, types) for name, value in fields.items()})
    return example.with_inputs(*(name for name in inputs if name in fields))


def _value(name: str, value: JsonValue, folder: Path, types: Mapping[str, Any]) -> Any:
    kind = types.get(name, str)
    if isinstance(value, dict) and set(value) == {"file"}:
        return (kind if kind in (Files, Table) else Text).open(folder / str(value["file"]))
    if kind in (str, Any, *MEDIA):
        return value
    try:
        return read_value(value, kind)
    except ValueError as error:
        fix = '; write {"file": "its path"}' if kind in (Files, Table) else ""
        raise ValueError(f"the input {name!r}: {error}{fix}") from error


Each = Literal["call", "run"]


@dataclass
class ChatRecorder(BaseCallback):
    """Records the messages and replies of one predictor's calls, those of its copies in runs that vote included.

    Add it to the callbacks: `with dspy.context(callbacks=[*dspy.settings.callbacks, recorder])`.

    Attributes:
        predictor: The predictor object.
    """

    predictor: dspy.Predict
    _ended: list[tuple[Any, Chat]] = field(default_factory=list, repr=False)
    _calls: dict[str, Chat] = field(default_factory=dict, repr=False)
    _sent: dict[str, tuple[str, Chat]] = field(default_factory=dict, repr=False)

    def chats_in(self, trace: Trace) -> list[Chat]:
        """Return the messages and reply of each call that is in a trace, in the order in which calls end.

        A call with retries has only its last request. Left out are failed calls, answers that were asked for
        again, runs that lost a vote, and turns without code.
        """
        kept = {id(outputs) for predictor, _, outputs in trace or () if predictor is self.predictor}
        return [chat for outputs, chat in self._ended if id(outputs) in kept]

    def on_module_start(self, call_id: str, instance: dspy.Module, inputs: Mapping[str, Any]) -> None:
        """Start a call of the predictor, or of one like it."""
        if type(instance) is type(self.predictor) and instance.signature is self.predictor.signature:
            self._calls[call_id] = []

    def on_module_end(
        self, call_id: str, outputs: dspy.Prediction | None, exception: BaseException | None = None
    ) -> None:
        """Keep the last chat of the call, if its reply was usable."""
        chat = self._calls.pop(call_id, None)
        no_code = isinstance(self.predictor, Act) and not getattr(outputs, "code", "")
        if chat and exception is None and not no_code:
            self._ended.append((outputs, chat))

    def on_lm_start(self, call_id: str, instance: dspy.BaseLM, inputs: Mapping[str, Any]) -> None:
        """Remember the messages."""
        messages = inputs.get("messages") or [{"role": "user", "content": inputs.get("prompt") or ""}]
        self._sent[call_id] = (ACTIVE_CALL_ID.get() or "", [dict(message) for message in messages])

    def on_lm_end(self, call_id: str, outputs: Outputs, exception: BaseException | None = None) -> None:
        """Build the chat of the call from the messages and the reply."""
        asking, messages = self._sent.pop(call_id)
        reply = _text(outputs)
        if exception is None and reply and asking in self._calls:
            self._calls[asking] = [*messages, {"role": "assistant", "content": reply}]


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
    """Run a program on a dataset, and write the calls of one predictor in high-scoring runs as chat JSONL.

    A line is `{"messages": [...]}`: the exact messages, then the exact reply of the model.

    Args:
        program: The program.
        dataset: The examples.
        path: The file. It is written when all runs have ended, or when one is interrupted after others gave chats.
            An example that raises is left out, with a warning.
        metric: `metric(example, prediction, trace=None)`.
        predictor: The name of the predictor in `named_predictors`: `act`, `query`, `subs.claims`,
            `find.act`. Calls in children are included.
        min_score: The minimum score of a run.
        each: `"call"` for one line per call; `"run"` for only the longest call of each conversation, with
            the turns before it (as shown to the model, not as written).

    Returns:
        The number of lines written.

    Raises:
        ValueError: If the predictor or `each` is unknown.
        OSError: If the file cannot be written, before anything is run.
        Exception: The error of the last example, if all raised; the file is unchanged then.
    """
    if each not in get_args(Each):
        raise ValueError(f"each must be one of {get_args(Each)}, not {each!r}.")
    predictors = dict(program.named_predictors())
    if predictor not in predictors:
        raise ValueError(f"Unknown predictor {predictor!r}; choose one of {sorted(predictors)}.")
    chats: list[Chat] = []

    def collect(example: dspy.Example) -> None:
        recorder = ChatRecorder(predictors[predictor])
        with dspy.context(callbacks=[*dspy.settings.callbacks, recorder], trace=[], max_trace_size=sys.maxsize):
            prediction = program(**example.inputs())
            trace = list(dspy.settings.trace)
            score = score_of(metric(example, prediction, trace))
        if score >= min_score:
            found = recorder.chats_in(trace)
            chats.extend(_longest(found) if each == "run" else found)

    check_writable(path)
    ended = False
    try:
        run_each(collect, dataset)
        ended = True
    finally:
        if ended or chats:
            lines = "".join(json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in chats)
            write_whole(lines, path)
    return len(chats)


def _longest(chats: list[Chat]) -> list[Chat]:
    """Return the chats that no other chat continues."""
    sent = [chat[:-1] for chat in chats]
    return [
        chat
        for chat, mine in zip(chats, sent, strict=True)
        if not any(len(other) > len(mine) and other[: len(mine)] == mine for other in sent)
    ]
