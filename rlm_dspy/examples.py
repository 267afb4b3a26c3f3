"""Datasets: read from JSON lines, and wrapped so that no optimizer pastes a long text into a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.inputs import Text

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence


def compact(examples: Iterable[dspy.Example], *, min_chars: int = 2_000) -> list[dspy.Example]:
    """Return examples whose long texts stay short in reprs, saved states and prompts.

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
    fields = example.inputs() if getattr(example, "_input_keys", None) is not None else example
    long = {
        name: Text(value) for name, value in fields.items() if isinstance(value, str) and len(value) >= min_chars
    }
    return example.copy(**long) if long else example


def read_examples(path: str | os.PathLike[str], inputs: Sequence[str]) -> list[dspy.Example]:
    """Return the examples of a file of JSON lines: one object a line, one key a field.

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
        raise ValueError(f"There is no file {path}.")
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
        raise ValueError(f"{source.name} holds no examples; write one JSON object a line.")
    return compact(examples)


def _read(line: str, inputs: Sequence[str], folder: Path) -> dspy.Example:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {type(fields).__name__}")  # noqa: TRY004  # of the file's content
    if missing := [name for name in inputs if name not in fields]:
        raise ValueError(f"the input {missing[0]!r} is missing; there are {sorted(fields)}")
    return dspy.Example(**{name: _value(value, folder) for name, value in fields.items()}).with_inputs(*inputs)


def _value(value: Any, folder: Path) -> Any:
    if isinstance(value, dict) and set(value) == {"file"}:
        return Text.open(folder / value["file"])
    return value
