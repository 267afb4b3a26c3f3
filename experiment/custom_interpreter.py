"""Two interpreters of one's own, each under this package's RLM and under `dspy.RLM`.

    uv run python experiment/custom_interpreter.py

First a scripted LM drives both interpreters through both modules: that shows the interpreters, not a model. Then
the model that `choose_model` finds tries the same, and what came of it is printed as it was.

Both run code in this process and protect from nothing.
"""

import ast
import contextlib
import io
import os
from collections.abc import Mapping
from typing import Annotated, Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before anything asks the network for prices

import dspy
import typer

from rlm_dspy import RLM
from rlm_dspy.interpreters import CellError, LocalPythonInterpreter
from rlm_dspy.models import choose_model, limits_for
from rlm_dspy.testing import ScriptedLM


class PlainInterpreter:
    """Executes Python in the current environment: DSPy's `CodeInterpreter` protocol and nothing else."""

    def __init__(self) -> None:
        self.tools: dict[str, Any] = {}
        self.output_fields: list[dict[str, Any]] | None = None
        self.namespace: dict[str, Any] = {"__name__": "__main__"}

    def start(self) -> None:
        """Do nothing: this process runs already."""

    def shutdown(self) -> None:
        """Forget the session."""
        self.namespace.clear()

    def execute(self, code: str, variables: Mapping[str, Any] | None = None) -> Any:
        """Run one block; return what it printed, or its `SUBMIT` as a `dspy.FinalOutput`."""
        self.namespace.update(variables or {}, **self.tools, SUBMIT=self._submit)
        printed = io.StringIO()
        compiled = compile(code, "<block>", "exec")  # a SyntaxError is for the model, as the protocol says
        try:
            with contextlib.redirect_stdout(printed):
                exec(compiled, self.namespace)
        except _Submitted as submitted:
            return dspy.FinalOutput(submitted.args[0])
        except Exception as error:
            raise dspy.CodeExecutionError(f"{printed.getvalue()}{type(error).__name__}: {error}") from error
        return printed.getvalue()

    def _submit(self, *values: Any, **fields: Any) -> None:
        names = [field["name"] for field in self.output_fields or []]
        raise _Submitted({**dict(zip(names, values, strict=False)), **fields})


class _Submitted(BaseException):
    """Leaves a block that called SUBMIT; no `except Exception` in it stops this."""


class GuardedInterpreter(LocalPythonInterpreter):
    """Keeps a journal of what ran, and refuses blocks that import what they need not.

    A note on the door, not a wall: code that wants to get around it can.
    """

    forbidden = frozenset({"socket", "subprocess", "shutil", "urllib"})

    def __init__(self) -> None:
        super().__init__()
        self.journal: list[str] = []

    def _execute(self, code: str, variables: Mapping[str, Any]) -> Any:
        if refused := sorted(self.forbidden & imported(code)):
            self.journal.append(f"refused, it imports {', '.join(refused)}")
            raise CellError(
                f"ImportError: {', '.join(refused)} may not be imported here. Use what is in the REPL."
            )
        self.journal.append(f"ran {len(code.splitlines())} lines")
        return super()._execute(code, variables)


def imported(code: str) -> set[str]:
    """Return the top-level modules that a block imports; none if it does not parse."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in names}


SIGNATURE = "stock, question -> answer: int"
STOCK = "apples 17\nplums 23\napples 4\npears 8\n"
QUESTION = "How many apples are there?"
REPLY = "[[ ## reasoning ## ]]\n{}\n\n[[ ## code ## ]]\n```python\n{}\n```\n\n[[ ## completed ## ]]"
SCRIPT = [
    REPLY.format(
        "Read it with a shell.", "import subprocess\nprint(subprocess.run(['cat', 'stock'], capture_output=True))"
    ),
    REPLY.format("Count.", "lines = [line.split() for line in stock.splitlines()]\nprint(lines)"),
    REPLY.format("Add up.", "SUBMIT(answer=sum(int(n) for name, n in lines if name == 'apples'))"),
]


def report(what: str, rlm: dspy.Module) -> int | None:
    """Run a module, print what came of it, and return the answer if there is one."""
    try:
        result = rlm(stock=STOCK, question=QUESTION)
    except (dspy.AdapterParseError, dspy.LMError) as error:
        print(
            f"  {what}: the model could not do it ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        )
        return None
    turns = len(result.trajectory)
    print(f"  {what}: answer {result.answer!r}, {result.get('stop') or 'ended'} after {turns} turns")
    answer: int | None = result.answer
    return answer


def both(interpreter: type, limits: Any) -> list[int | None]:
    """Run the task with one interpreter under both modules."""
    print(f"{interpreter.__name__}")
    ours = RLM(SIGNATURE, limits=limits, interpreter_factory=interpreter)
    upstream = dspy.RLM(SIGNATURE, max_iters=limits.max_iters, interpreter_factory=interpreter)
    return [report("rlm_dspy.RLM", ours), report("dspy.RLM", upstream)]


def scripted() -> None:
    """Drive both interpreters through both modules with replies that were written in advance."""
    print("=== a scripted LM (this shows the interpreters, not a model)")
    for interpreter in (PlainInterpreter, GuardedInterpreter):
        with dspy.context(lm=ScriptedLM(SCRIPT * 2)):
            answers = both(interpreter, limits_for(None))
        assert answers == [21, 21], answers
    guarded = GuardedInterpreter()
    with dspy.context(lm=ScriptedLM(SCRIPT)):
        RLM(SIGNATURE, interpreter_factory=lambda: guarded)(stock=STOCK, question=QUESTION)
    print(f"  the journal of one run, after what RLM sets up: {'; '.join(guarded.journal[1:])}")


def main(
    model: Annotated[str | None, typer.Option(help="As for rlm-dspy ask --model.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Turns that the model has.")] = 3,
) -> None:
    """Show two interpreters under two modules, with a scripted LM and with a model."""
    scripted()
    lm = choose_model(model)
    print(f"\n=== {lm.model} (the answer is 21)")
    with dspy.context(lm=lm):
        answers = both(PlainInterpreter, limits_for(lm, max_iters=turns))
    print(f"{answers.count(21)} of {len(answers)} right")


if __name__ == "__main__":
    typer.run(main)
