"""Count the modules of ours that a reader of the code has to walk through on three journeys of a run.

    uv run python experiment/bench/journeys.py [--verbose]

The journeys, of a run whose model writes two blocks of code and whose sub-calls another reply answers:

- `context`: from the call of an `RLM` to the first request of the LM. The REPL is opened and furnished on the way.
- `llm_query`: from the cell that calls `llm_query(..)` to the LM, and back to the cell.
- `SUBMIT`: from the cell that calls `SUBMIT(answer=..)` to the return of the `Prediction`. The REPL is closed on
  the way.

Counted are the calls of functions whose code stands in a file of `rlm_dspy` or its packages, and of the functions
that a REPL has of us (`in_repl`), in all threads of this process, in the order in which they begin. So neither
returns nor what Python or a library does in between counts, nor methods that Python writes (dataclasses). Another
start of a generator or coroutine is a call. `rlm_dspy.testing` is left out, as it plays the model.

- modules: how many modules are entered
- changes: how many calls begin in another module than the call before
- calls, and how many functions they are of

A cell sleeps before and after what it does. The first call after such a pause begins a journey, the last before
one ends it; so nothing inside of ours need be known here. The shortest of `--runs` runs is shown, after one
that is not counted: imports and caches are done then.

With `LocalPythonInterpreter` the code runs in this process, and all is seen; so the numbers of journeys in the
project's notes were counted. With `PythonInterpreter` it runs in a confined process, and the host's side is seen.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from rlm_dspy import RLM

PAUSE_SECONDS = 0.4
"""How long a cell sleeps. The host's threads look at their clocks each half second, so it is less."""
CELLS = (
    f"import time\ntime.sleep({PAUSE_SECONDS})\nasked = llm_query(context)\ntime.sleep({PAUSE_SECONDS})",
    f"import time\ntime.sleep({PAUSE_SECONDS})\nSUBMIT(answer=asked)",
)
IN_REPL = "<functions>"
"""The file name of the code that gives a REPL its functions."""
WITHOUT = frozenset({"rlm_dspy.testing"})
PRICES = {"scripted/lm": (0.25, 2.0)}


@dataclass(frozen=True)
class Call:
    """A call of a function of ours.

    Attributes:
        at: When it began, in seconds.
        module: The module, without `rlm_dspy`.
        code: The function.
    """

    at: float
    module: str
    code: CodeType


@dataclass(frozen=True)
class Journey:
    """The calls of one journey, in the order in which they begin."""

    calls: list[Call]

    @property
    def way(self) -> list[str]:
        """The modules in the order of their calls, each once for calls that follow one another."""
        modules = [call.module for call in self.calls]
        return [module for module, before in zip(modules, ["", *modules], strict=False) if module != before]

    def row(self) -> list[int]:
        """Return modules, changes, calls, and functions."""
        functions = {call.code for call in self.calls}
        return [len(set(self.way)), max(len(self.way) - 1, 0), len(self.calls), len(functions)]


@dataclass
class Recorder:
    """Writes down the calls of functions of ours, in every thread that begins after `install`.

    Attributes:
        calls: What was called since `begin`.
        requests: When the LM was asked since then.
    """

    calls: list[Call] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    _recording: bool = False
    _modules: dict[CodeType, str] = field(default_factory=dict)

    def install(self) -> None:
        """Have Python tell of every call; do it before anything of ours can start a thread."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def begin(self) -> None:
        """Forget what was recorded, and record from now on."""
        self.calls, self.requests, self._recording = [], [], True

    def end(self) -> None:
        """Record no more."""
        self._recording = False

    def reply(self, text: str) -> Callable[[object], str]:
        """Return what replies with a text, and writes down when it was asked to."""

        def reply(_messages: object) -> str:
            self.requests.append(time.perf_counter())
            return text

        return reply

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if not self._recording or event != "call":
            return
        code = frame.f_code
        module = self._modules.get(code)
        if module is None:
            module = self._modules[code] = module_of(code, str(frame.f_globals.get("__name__", "")))
        if module:
            self.calls.append(Call(time.perf_counter(), module, code))


def module_of(code: CodeType, name: str) -> str:
    """Return the module of a function without `rlm_dspy`, or nothing if it is not counted.

    Args:
        code: The function.
        name: What its globals give as `__name__`.
    """
    if code.co_filename == IN_REPL:
        return "in_repl"
    ours = name.startswith("rlm_dspy.") and name not in WITHOUT and not code.co_filename.startswith("<")
    return name.removeprefix("rlm_dspy.") if ours else ""


def play(rlm: RLM, recorder: Recorder) -> dict[str, Journey]:
    """Let an RLM answer once; return its journeys."""
    import dspy

    from rlm_dspy.testing import ScriptedLM

    first, second = (f"```python\n{cell}\n```" for cell in CELLS)
    replies = [recorder.reply(text) for text in (first, "a reply", second)]
    lm = ScriptedLM(replies)
    lm.kwargs["max_tokens"] = 1_000  # `max_cost` asks for it
    with dspy.context(lm=lm), without_collection():
        recorder.begin()
        prediction = rlm(context="a line\n" * 1_000, question="What does the model reply?")
        returned = time.perf_counter()
        recorder.end()
    if prediction.stop != "submitted" or len(recorder.requests) != len(replies):
        raise RuntimeError(f"The run did not go as it should: {prediction}")
    asked, sub_call, _ = recorder.requests
    calls = recorder.calls
    return {
        "context": Journey([call for call in calls if call.at <= asked]),
        "llm_query": Journey(between(calls, after_pause(calls, sub_call), before_pause(calls, sub_call))),
        "SUBMIT": Journey(between(calls, after_pause(calls, returned), returned)),
    }


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage in this scope, so that what is called when something goes away adds to no journey."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def between(calls: list[Call], begin: float, end: float) -> list[Call]:
    """Return the calls from one time to another."""
    return [call for call in calls if begin <= call.at <= end]


def after_pause(calls: list[Call], end: float) -> float:
    """Return when the first call after the last pause before `end` began."""
    times = [call.at for call in calls if call.at <= end]
    return next(
        at for at, before in zip(reversed(times), reversed(times[:-1]), strict=False) if is_pause(before, at)
    )


def before_pause(calls: list[Call], begin: float) -> float:
    """Return when the last call before the first pause after `begin` began."""
    times = [begin, *(call.at for call in calls if call.at > begin)]
    return next(at for at, after in itertools.pairwise(times) if is_pause(at, after))


def is_pause(before: float, after: float) -> bool:
    """Say whether a cell slept between two calls."""
    return after - before > PAUSE_SECONDS / 2


def journeys(interpreter: str, *, priced: bool, runs: int, recorder: Recorder) -> dict[str, Journey]:
    """Return each journey with the fewest calls of some runs.

    Args:
        interpreter: The name of a class of `rlm_dspy.interpreters`.
        priced: Whether the run has a `max_cost`.
        runs: How many are counted, after one that is not.
        recorder: What records them; it is installed.
    """
    from rlm_dspy import RLM, Limits, interpreters

    limits = Limits(max_cost=1.0, prices=PRICES) if priced else Limits()
    rlm = RLM(
        "context, question -> answer",
        limits=limits,
        policy=None,
        interpreter_factory=getattr(interpreters, interpreter),
    )
    play(rlm, recorder)
    found = [play(rlm, recorder) for _ in range(runs)]
    return {name: min((each[name] for each in found), key=lambda journey: len(journey.calls)) for name in found[0]}


def main() -> None:
    """Print the journeys of both interpreters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpreter", action="append", help="a class of rlm_dspy.interpreters; by default two")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--verbose", action="store_true", help="list the modules on the way")
    given = parser.parse_args()
    recorder = Recorder()
    recorder.install()
    print("| interpreter | journey | modules | changes | calls | functions |")
    print("|---|---|---|---|---|---|")
    ways = []
    for interpreter in given.interpreter or ("LocalPythonInterpreter", "PythonInterpreter"):
        for priced in (False, True):
            found = journeys(interpreter, priced=priced, runs=given.runs, recorder=recorder)
            for name, journey in found.items():
                title = f"{name}, with max_cost" if priced else name
                print(f"| {interpreter} | {title} | {' | '.join(map(str, journey.row()))} |", flush=True)
                ways.append(f"{interpreter}, {title}:\n{' > '.join(journey.way)}")
    if given.verbose:
        print("\n" + "\n\n".join(ways))


if __name__ == "__main__":
    main()
