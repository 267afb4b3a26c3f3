"""What a compile over long contexts costs besides model calls: peak memory, saved state, the longest prompt.

    uv run python experiment/bench/compile.py

200 examples with contexts of a million characters each, scripted replies, code in this process. Each row is a
process of its own. `dspy.RLM` beside it, with the same optimizer, examples, and interpreter. The table goes to
`COMPILE.md`, unless `--count` or `--chars` ask for another size.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import dspy
import typer

from rlm_dspy import RLM
from rlm_dspy.budget.metered_lm import role
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import TrajectoryFewShot, compact
from rlm_dspy.signatures import Environment
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages

REPORT = Path(__file__).parent / "COMPILE.md"
HEAD = """# What a compile over long contexts costs

Made by `experiment/bench/compile.py`: scripted replies, code in this process, each row a process of its own.
"""
COUNT, CHARS = 200, 1_000_000
_ASKS = Environment().parts[-1].partition(".")[0]  # as the last paragraph of every environment does
SIGNATURE = "context, question -> answer"
LOOK = "at = context.find(question + ' is ')\nfound = context[at : at + 40]\nprint(found)"
SUBMIT = "SUBMIT(answer=re.findall(r'is (\\w+)', found)[0])"


def examples(count: int, chars: int) -> list[dspy.Example]:
    """Return examples, each over a context of its own that holds one fact."""
    made = []
    for number in range(count):
        filler = f"Page {number} says nothing of it. " * (chars // 30)
        half = len(filler) // 2
        context = f"{filler[:half]}The code {number} is v{number}. {filler[half:]}"[:chars]
        fields = {"context": context, "question": f"The code {number}", "answer": f"v{number}"}
        made.append(dspy.Example(**fields).with_inputs("context", "question"))
    return made


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:  # noqa: ARG001  # DSPy hands it over
    return bool(example.answer == prediction.answer)


def reply(messages: Messages) -> str:
    """Play the model: a first turn, a second one, or an optimizer's question."""
    asked = messages[-1]["content"]
    demanded = re.findall(r"\[\[ ## (\w+) ## \]\]", asked.rsplit("Respond with", maxsplit=1)[-1])
    upstream = "[[ ## code ## ]]" in messages[0]["content"]
    if upstream or role() == "act":
        code = f"import re\n{SUBMIT}" if f"{LOOK[:9]}" in asked or _looked(messages) else LOOK
        if upstream:
            return f"[[ ## reasoning ## ]]\nNext.\n\n[[ ## code ## ]]\n{code}\n\n[[ ## completed ## ]]"
        return f"Next.\n```python\n{code}\n```"
    values = {name: "Look first, then answer." for name in demanded if name != "completed"}
    return "\n\n".join(
        [*(f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()), "[[ ## completed ## ]]"]
    )


def _begins(message: dict[str, str]) -> bool:
    """Whether a message begins a run of ours."""
    return message["role"] == "user" and _ASKS in message["content"]


def _looked(messages: Messages) -> bool:
    """Whether the run at the end of a chat has had its first turn."""
    starts = [at for at, message in enumerate(messages) if _begins(message)]
    return bool(starts) and len(messages) - starts[-1] > 1


def bootstrap(program: Any, train: list[dspy.Example]) -> Any:
    return dspy.BootstrapFewShot(metric=exact).compile(program, trainset=train)


def mipro(program: Any, train: list[dspy.Example]) -> Any:
    optimizer = dspy.MIPROv2(exact, auto=None, num_candidates=3, num_threads=1)
    return optimizer.compile(program, trainset=train, num_trials=4, minibatch_size=20)


def trajectories(program: Any, train: list[dspy.Example]) -> Any:
    return TrajectoryFewShot(exact).compile(program, trainset=train)


def ours() -> Any:
    return RLM(SIGNATURE)


def theirs() -> Any:
    return dspy.RLM(SIGNATURE)


ROWS: dict[str, tuple[Callable[[], Any], Callable[..., Any], bool]] = {
    "RLM, TrajectoryFewShot": (ours, trajectories, True),
    "RLM, BootstrapFewShot": (ours, bootstrap, True),
    "RLM, BootstrapFewShot, dataset not wrapped": (ours, bootstrap, False),
    "RLM, MIPROv2": (ours, mipro, True),
    "dspy.RLM, BootstrapFewShot": (theirs, bootstrap, False),
    "dspy.RLM, MIPROv2": (theirs, mipro, False),
}


def measure(row: str, count: int, chars: int) -> dict[str, Any]:
    """Compile in this process and return what it took."""
    make, optimize, wrapped = ROWS[row]
    train = compact(examples(count, chars)) if wrapped else examples(count, chars)
    lm = ScriptedLM(reply)
    logging.disable(logging.WARNING)
    before, started = peak_mb(), time.process_time()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter),
    ):
        compiled = optimize(make(), train)
    seconds = time.process_time() - started
    calls = lm.script.calls
    return {
        "row": row,
        "peak_mb_above_dataset": round(peak_mb() - before, 1),
        "state_bytes": len(json.dumps(compiled.dump_state())),
        "longest_prompt_chars": max(sum(len(m["content"]) for m in messages) for messages in calls),
        "calls": len(calls),
        "cpu_seconds": round(seconds, 1),
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    count: Annotated[int, typer.Option(help="Examples.")] = COUNT,
    chars: Annotated[int, typer.Option(help="Characters of each context.")] = CHARS,
    row: Annotated[str | None, typer.Option(help="Measure one row in this process and print JSON.")] = None,
) -> None:
    """Print the table as Markdown, and write it if it is of the usual size; a row that fails is told in it."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if row is not None:
        print(json.dumps(measure(row, count, chars)))
        return
    columns = ["program, optimizer", "peak MB above the dataset", "state, bytes", "longest prompt, characters"]
    lines = [f"{count} examples, {chars:,} characters each.", ""]
    lines += ["| " + " | ".join([*columns, "model calls", "CPU s"]) + " |", "|---|---|---|---|---|---|"]
    print(*lines, sep="\n", flush=True)
    for name in ROWS:
        lines.append(line(name, count, chars))
        print(lines[-1], flush=True)
    if (count, chars) == (COUNT, CHARS):
        REPORT.write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")
    raise typer.Exit(any("| failed: " in each for each in lines))


def line(name: str, count: int, chars: int) -> str:
    """Return a line of the table, measured in a process of its own."""
    command = [sys.executable, __file__, "--row", name, "--count", str(count), "--chars", str(chars)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"| {name} | failed: {done.stderr.strip().splitlines()[-1][:200]} | | | | |"
    got = json.loads(done.stdout.strip().splitlines()[-1])
    return "| " + " | ".join([name, *(f"{got[key]:,}" for key in list(got)[1:])]) + " |"


if __name__ == "__main__":
    typer.run(main)
