"""Convert a log of `rlms` (github.com/alexzhang13/rlm, 0.1.3) into records, one for each run.

    uv run python experiment/rlms_log.py logs/rlm_2026-01-31.jsonl --folder runs
    uv run rlm-dspy report runs/run-1.json

The `RLMLogger` of `rlms` writes one JSON object a line: `metadata` when an `RLM` is made, then an `iteration` for
each turn. `RLMChatCompletion.metadata` has the same objects, as `run_metadata` and `iterations`; a JSON file of it
can be read too.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import running
import typer

from rlm_dspy.limits import Limits
from rlm_dspy.replies.reply_parser import read_reply
from rlm_dspy.report.record import Record
from rlm_dspy.text import clip
from rlm_dspy.trajectory import Step, StepKind, SubCall
from rlm_dspy.usage import RunUsage, Usage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

_SIGNATURE = "context -> answer: str"
_CONTEXT_CHARS = 400
_CALL_CHARS = 1_000
_RAISED = re.compile(r"(\A|\n)\w*(Error|Exception|Interrupt|Exit|StopIteration|Warning)(: .*)?\Z", re.DOTALL)
_NO_CODE = "(no code in this reply)"

Line = dict[str, Any]


def read_rlms_log(path: str | os.PathLike[str]) -> list[Record]:
    """Return the runs of a log, one for each call of `completion`, in order.

    - A turn of `rlms` may run several blocks of code; the step joins them.
    - An answer that `rlms` asked for after the last turn has the stop `extracted`. A run without an answer has the
      stop `killed`: the log does not say whether a limit, an error or the end of the process stopped it.
    - The log does not tell what the turns used, and omits some failed sub-calls. `usage` adds up the sub-calls
      that it holds. They have the start time of their turn, because the log has no other.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds no iteration, or one in another form than that of rlms 0.1.3.
    """
    data = Path(path).read_bytes()
    lines = [line for text in data.split(b"\n") if (line := _parsed(text))]
    whole = _parsed(data) or {}
    metadata = lines[0] if lines and lines[0].get("type") == "metadata" else whole.get("run_metadata") or {}
    runs = records_of(metadata, whole.get("iterations") or lines)
    if not runs:
        raise ValueError(f"{path} is not a log of rlms: it holds no iteration.")
    return runs


def records_of(metadata: Line, lines: Iterable[Line]) -> list[Record]:
    """Return the runs that iterations belong to; each starts with iteration 1.

    Args:
        metadata: Of the `RLM`; may be empty.
        lines: The iterations; lines of other types are skipped.

    Raises:
        ValueError: If an iteration is not in the form that rlms 0.1.3 writes.
    """
    runs: list[list[Line]] = []
    for line in lines:
        if line.get("type") == "iteration":
            if line.get("iteration") == 1 or not runs:
                runs.append([])
            runs[-1].append(line)
    try:
        return [_record(metadata, iterations) for iterations in runs]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"This log is not in the form that rlms 0.1.3 writes: {error!r}.") from error


def _parsed(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _record(metadata: Line, iterations: list[Line]) -> Record:
    began = _began(iterations[0])
    steps = _steps(iterations, began)
    stop, answer = _end(iterations)
    spent = _sum(call.spent for step in steps for call in step.calls)
    by_role = {
        kind: _sum(c.spent for s in steps for c in s.calls if c.kind == kind) for kind in ("query", "child")
    }
    return Record(
        signature=_SIGNATURE,
        instructions=_asked(iterations[0]),
        inputs={"context": clip(_context(iterations), _CONTEXT_CHARS)},
        model=str(metadata.get("root_model", "")),
        limits={"max_iters": metadata.get("max_iterations", Limits().max_iters)},
        outputs={} if answer is None else {"answer": answer},
        stop=stop,
        usage=RunUsage(
            **dict(spent),
            seconds=_time(iterations[-1]) - began,
            by_role={role: of for role, of in by_role.items() if of.calls},
        ),
        trajectory=steps,
        final_reasoning=steps[-1].reasoning if stop == "submitted" else "",
    )


def _steps(iterations: list[Line], began: float) -> list[Step]:
    return [_step(line, began) for line in iterations if not _is_last_resort(line)]


def _end(iterations: list[Line]) -> tuple[Literal["submitted", "extracted", "killed"], str | None]:
    answer = iterations[-1].get("final_answer")
    if answer is None:
        return "killed", None
    return "extracted" if _is_last_resort(iterations[-1]) else "submitted", str(answer)


def _is_last_resort(line: Line) -> bool:
    """Return whether this is no turn, but the answer that was asked for after the last one."""
    return line.get("final_answer") is not None and not line.get("code_blocks")


def _step(line: Line, began: float) -> Step:
    blocks = line.get("code_blocks") or []
    started = _began(line) - began
    calls = [call for block in blocks for call in block["result"].get("rlm_calls") or []]
    entries = tuple(_call(number, call, started, began) for number, call in enumerate(calls, 1))
    return Step(
        reasoning=read_reply(str(line.get("response", ""))).reasoning,
        code="\n\n".join(block["code"] for block in blocks),
        output="\n".join(filter(None, (_printed(block["result"]) for block in blocks))) if blocks else _NO_CODE,
        kind=_kind(line, blocks),
        seconds=line.get("iteration_time") or 0.0,
        spent=_sum(entry.spent for entry in entries),
        started=started,
        calls=entries,
    )


def _kind(line: Line, blocks: list[Line]) -> StepKind:
    if line.get("final_answer") is not None:
        return "submitted"
    if not blocks:
        return "no_code"
    return "error" if any(_RAISED.search(block["result"].get("stderr") or "") for block in blocks) else "output"


def _printed(result: Line) -> str:
    return "\n".join(part.strip("\n") for part in (result.get("stdout"), result.get("stderr")) if part)


def _call(number: int, call: Line, started: float, began: float) -> SubCall:
    iterations = (call.get("metadata") or {}).get("iterations") or []
    spent = _sum(_spent(call.get("usage_summary") or {}))
    response = str(call.get("response") or "")
    error = str(call.get("error") or "")
    if not error and response.startswith("Error: ") and not spent.calls:  # how rlms tells code of a failure
        error, response = response, ""
    prompt = call.get("prompt")
    return SubCall(
        name="rlm" if iterations else "query",
        kind="child" if iterations else "query",
        batch=number,
        inputs={"prompt": clip(prompt if isinstance(prompt, str) else repr(prompt), _CALL_CHARS)},
        output=clip(response, _CALL_CHARS),
        error=clip(error, _CALL_CHARS),
        started=_began(iterations[0]) - began if iterations else started,
        seconds=call.get("execution_time") or 0.0,
        spent=spent,
        stop=_end(iterations)[0] if iterations else "",
        steps=tuple(_steps(iterations, began)),
    )


def _spent(summary: Line) -> Iterator[Usage]:
    for of_model in (summary.get("model_usage_summaries") or {}).values():
        yield Usage(
            calls=of_model.get("total_calls") or 0,
            input_tokens=of_model.get("total_input_tokens") or 0,
            output_tokens=of_model.get("total_output_tokens") or 0,
            cost=of_model.get("total_cost"),
        )


def _sum(parts: Iterable[Usage]) -> Usage:
    return sum(parts, Usage())


def _asked(line: Line) -> str:
    """Return the first message of the user: the question, if there is one, and what the context is."""
    prompt = line.get("prompt")
    messages = prompt if isinstance(prompt, list) else []
    return next((str(message.get("content")) for message in messages if message.get("role") == "user"), "")


def _context(iterations: list[Line]) -> str:
    """Return the context as the variables after the first block show it; empty if no code ran."""
    blocks = (block for line in iterations for block in line.get("code_blocks") or [])
    return next((str((block["result"].get("locals") or {}).get("context", "")) for block in blocks), "")


def _time(line: Line) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def _began(line: Line) -> float:
    return _time(line) - (line.get("iteration_time") or 0.0)


def main(
    log: Annotated[Path, typer.Argument(help="A log of rlms.", exists=True, dir_okay=False)],
    folder: Annotated[Path, typer.Option(help="Where the records are written.")] = Path(),
) -> None:
    """Write a record for each run of a log of rlms."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(read_rlms_log(log), 1):
        path = folder / f"run-{number}.json"
        record.save(path)
        print(path)


if __name__ == "__main__":
    running.run(main)
