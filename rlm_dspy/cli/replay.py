"""The command `rlm-dspy replay run.json FILE...`."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

import rlm_dspy
from rlm_dspy.cli.errors import errors_as_lines, quiet_dspy, tell
from rlm_dspy.cli.options import Debug, Files, Interpreter, InterpreterName, Run, RunNumber, factory_of
from rlm_dspy.cli.task import STDIN, Task, read_task
from rlm_dspy.errors import UsageError
from rlm_dspy.text import counted, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_dspy.replay.replay import ReplayedStep
    from rlm_dspy.report.record import Record

SAME, DIFFERENT = 0, 1


def replay(
    path: Run,
    files: Files = None,
    run: RunNumber = None,
    interpreter: Interpreter = None,
    debug: Debug = False,
) -> None:
    """Run the code of a recorded run again without a model, and compare outputs and answers.

    Sub-calls are answered from the record.

    \b
    For example:
      rlm-dspy ask "Who wrote about drift?" articles.md --save run.json
      rlm-dspy replay run.json articles.md

    \b
    Exit codes:
      0    every step gave the same result
      1    a step gave another result
      2    invalid usage or input
      3    the interpreter failed
    """  # noqa: D301 (\b keeps the line breaks)
    with errors_as_lines(debug=debug), quiet_dspy():
        from rlm_dspy.observe.load import load_record
        from rlm_dspy.replay.replay import replay as replayed

        record = load_record(path, run)
        inputs = recorded_task(record, files or []).inputs
        for name in _others(record, inputs):
            tell(f"Warning: the input {name!r} is not the one that was recorded.")
        steps = replayed(record, inputs, factory_of(interpreter or InterpreterName.python))
        if any(step.kind == "killed" for step in record.trajectory):
            tell("The last turn was cut short when the process was killed; it is left out.")
        if not steps:
            raise UsageError("There is nothing to replay: the run completed no turn.")
    for step in steps:
        typer.echo(printable(_comparison_line(step)))
    same = sum(step.same for step in steps)
    typer.echo(f"{same} of {counted(len(steps), 'step')} did the same.")
    raise typer.Exit(SAME if same == len(steps) else DIFFERENT)


def recorded_task(record: Record, files: list[str]) -> Task:
    """Return the task of a record; the long text is read from the files again.

    Raises:
        UsageError: If the record does not hold the inputs, or the files cannot be read.
    """
    from rlm_dspy.replay.replay import signature_of

    signature = signature_of(record)
    names = list(signature.input_fields)
    if not files:
        inputs = {name: _value(record, name) for name in names}
        return Task(str(inputs.get("question", record.instructions)), signature, inputs)
    asked = names[0] if len(names) == 1 else "question" if "question" in names else names[-1]
    question = record.instructions if len(names) == 1 else _value(record, asked)
    if not isinstance(question, str):
        raise UsageError(
            f"The input {asked!r} is not a text. Replay the run from Python: rlm_dspy.replay.replay.replay."
        )
    stdin = typer.get_binary_stream("stdin") if STDIN in files else None
    return replace(read_task(question, files, record.signature, stdin), signature=signature)


def _others(record: Record, inputs: Mapping[str, Any]) -> list[str]:
    """Return the names of the texts that differ from the recorded ones."""
    from rlm_dspy.report.record import digest_of

    kinds = (str, rlm_dspy.Text, rlm_dspy.Files, rlm_dspy.Table)
    texts = {name: value for name, value in inputs.items() if isinstance(value, kinds)}
    known = {name: digest.sha256 for name, digest in record.digests.items() if name in texts}
    return [name for name, sha256 in known.items() if digest_of(texts[name], 0).sha256 != sha256]


def _value(record: Record, name: str) -> Any:
    from rlm_dspy.replay.replay import signature_of

    text, digest = record.inputs.get(name, ""), record.digests.get(name)
    if digest is not None and not digest.whole:
        raise UsageError(f"The record contains only a shortened {name!r}. Name the files that the run was about.")
    if signature_of(record).input_fields[name].annotation is str:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _comparison_line(step: ReplayedStep) -> str:
    lines = [f"step {step.number}: {'same' if step.same else 'different'}"]
    if not step.same:
        lines += [f"  {line}" for line in step.difference().splitlines()]
        lines += [f"  not in the record: {missing}" for missing in step.missing]
        lines += ["  the answer is another"] if step.answered_otherwise else []
    return "\n".join(lines)
