"""Does runs of `chaos.py`, one after the other, and looks after each at how it ended and what it left behind."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from chaos_faults import SECONDS, WARM, Plan, plan
from dspy.utils.callback import BaseCallback

from rlm_dspy import RLM, Limits, RLMError, SubCallCache
from rlm_dspy.budget.metered_lm import role
from rlm_dspy.interpreters import CellLimits, LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.observe.event_log import RunLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TYPED = (RLMError, dspy.LMError, dspy.CodeInterpreterError, KeyboardInterrupt, asyncio.CancelledError)
"""What a caller is told to expect of a run (`rlm_dspy.errors`, `RLM.forward`)."""
TEXT = "some text " * 50
_LIMITS = WorkerLimits(memory_bytes=256 << 20, max_processes=48, scratch_bytes=8 << 20)
_SETTLE_SECONDS = 8.0
_WATCHDOG_SECONDS = 60
_KEPT_THREADS = ("rlm-loop", "rlm-watch", "rlm-tools", "rlm-call", "rlm-answers", "asyncio_", "ThreadPoolExecutor")
"""Threads that the process keeps for the next run; they do nothing meanwhile."""


def worker_interpreter() -> PythonInterpreter:
    """Return a confined interpreter."""
    return PythonInterpreter(
        worker_limits=_LIMITS, cell_limits=CellLimits(seconds=SECONDS, grace_seconds=0.5), packages=()
    )


class Factory:
    """Makes the interpreters of a run; some cannot be had."""

    def __init__(self, run: Plan) -> None:
        self._run = run
        self._made = 0

    def __call__(self) -> Any:
        """Return an interpreter."""
        self._made += 1
        fails = {"start fails": 1, "restart fails": 2}.get(self._run.around, 0)
        if fails and self._made >= fails:
            raise dspy.CodeInterpreterError("No interpreter can be had.")
        return LocalPythonInterpreter() if self._run.local else worker_interpreter()


class Odd:
    """A value that no interpreter takes."""

    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


def tools() -> list[Callable[..., Any]]:
    """Return the tools, most of which fail."""

    def echo(text: str) -> str:
        return text

    def fail(text: str) -> str:
        raise LookupError(text)

    def leave() -> str:
        sys.exit(3)

    def slow() -> str:
        time.sleep(1.5 * SECONDS)
        return "slow"

    def odd() -> Any:
        return Odd()

    async def afail(text: str) -> str:
        await asyncio.sleep(0)
        raise LookupError(text)

    async def ahang() -> str:
        await asyncio.sleep(1000)
        return "never"

    async def ablock() -> str:
        time.sleep(1.0)  # noqa: ASYNC251  # that is the fault
        return "blocked"

    return [echo, fail, leave, slow, odd, afail, ahang, ablock]


class Broken(BaseCallback):
    """A callback of the user's that raises."""

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Fail."""
        raise RuntimeError("a callback of the user's")


@contextlib.contextmanager
def around(run: Plan, full: Path | None) -> Iterator[dict[str, Any]]:
    """Do what goes wrong around the run; yield options for the RLM."""
    options: dict[str, Any] = {"limits": Limits(max_iters=6, max_cell_seconds=4 * SECONDS, max_seconds=30)}
    with contextlib.ExitStack() as undo:
        if run.around == "max_seconds":
            options["limits"] = Limits(max_iters=6, max_seconds=SECONDS)
        if run.around == "few descriptors":
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            few = len(descriptors()) + int(run.after * 20)
            resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
            undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        if run.around == "callback error":
            undo.enter_context(dspy.context(callbacks=[Broken()]))
        if run.around == "cache disk full" and full is not None:
            options["cache"] = undo.enter_context(SubCallCache(full / f"{run.number}.sqlite"))
        if run.around == "log disk full" and full is not None:
            undo.enter_context(RunLog(full / "log.jsonl"))
        yield options


async def awaited(rlm: RLM, run: Plan) -> dspy.Prediction:
    """Await a run, or cancel it."""
    task = asyncio.ensure_future(rlm.acall(context=TEXT))
    if run.around == "cancelled":
        asyncio.get_running_loop().call_later(run.after, task.cancel)
    return await task


class RoleLM(dspy.LM):
    """Sends the role of each request, such as `act`, as its `user`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Ask for the run."""
        return super().__call__(*args, user=role(), **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Ask for the run, awaited."""
        return await super().acall(*args, user=role(), **kwargs)


def one(run: Plan, url: str, seed: int, full: Path | None) -> dict[str, Any]:
    """Do a run; return how it ended."""
    asked = f"{url}/{seed}/{run.number}/v1"
    lm = RoleLM("openai/chaos", api_base=asked, api_key="none", cache=False, num_retries=1, timeout=SECONDS)
    begun, found = time.monotonic(), []
    try:
        with around(run, full) as options, dspy.context(lm=lm), contextlib.ExitStack() as ending:
            rlm = RLM(
                "context -> answer",
                tools=tools(),
                subs={"claim": "text -> score: int"},
                interpreter_factory=Factory(run),
                **options,
            )
            if run.around == "interrupt":  # of the run, not of what makes the module
                timer = threading.Timer(0.05 + run.after, os.kill, (os.getpid(), signal.SIGINT))
                timer.start()
                ending.callback(timer.join)
                ending.callback(timer.cancel)
            awaits = run.awaited or run.around == "cancelled"
            found.append(asyncio.run(awaited(rlm, run)) if awaits else rlm(context=TEXT))
    except BaseException as error:  # noqa: BLE001  # that is what is looked at
        seconds = time.monotonic() - begun
        if found and isinstance(error, KeyboardInterrupt):  # it came when the run was over
            return {"ended": "answered", "why": "late interrupt", "where": "", "seconds": seconds}
        typed = isinstance(error, TYPED) and hasattr(_of_run(error), "trajectory")
        ended, why = "typed" if typed else "untyped", f"{type(error).__name__}: {str(error)[:300]}"
        return {"ended": ended, "why": why, "where": "" if typed else _where(error), "seconds": seconds}
    return {"ended": "answered", "why": found[0].stop, "where": "", "seconds": time.monotonic() - begun}


def _of_run(error: BaseException) -> BaseException:
    """Return the error that left the run; `asyncio.run` raises a KeyboardInterrupt of its own behind it."""
    interrupted = isinstance(error, KeyboardInterrupt) and isinstance(error.__context__, asyncio.CancelledError)
    return error.__context__ or error if interrupted else error


def _where(error: BaseException) -> str:
    lines, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " < ".join(reversed(lines[-6:]))


def children() -> set[str]:
    """Return the processes that came from this one."""
    found, todo = set(), [os.getpid()]
    while todo:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for path in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
                todo += (inner := list(map(int, path.read_text().split())))
                found |= {f"process {each}" for each in inner}
    return found


def descriptors() -> set[str]:
    """Return the open descriptors, with what each is."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"descriptor {path.name} {path.readlink()}")
    return found


def standing() -> set[str]:
    """Return what stands of this process: its children, threads, descriptors, and temporary files."""
    others = [each for each in threading.enumerate() if not each.name.startswith(_KEPT_THREADS)]
    threads = {f"thread {each.name} {each.native_id}" for each in others}
    files = {f"file {path}" for path in Path(os.environ["TMPDIR"]).rglob("*")}
    shared = {f"shared {path}" for path in Path("/dev/shm").iterdir()} if "CHAOS_OWN_SHM" in os.environ else set()
    return {*descriptors(), *threads, *files, *shared, *children()}


def left(before: set[str]) -> list[str]:
    """Return what has come since and does not go."""
    until = time.monotonic() + _SETTLE_SECONDS
    while (more := standing() - before) and time.monotonic() < until:
        gc.collect()
        time.sleep(0.05)
    return sorted(more)


def main() -> None:
    """Do the runs FIRST, FIRST + STEP, ... below LAST; print a line of JSON before and after each."""
    url, full = sys.argv[1], Path(sys.argv[2]) if sys.argv[2] else None
    seed, first, last, step = map(int, sys.argv[3:])
    logging.disable(logging.CRITICAL)
    for awaits, local in ((False, False), (False, True), (True, False), (True, True)):
        one(Plan(WARM, "", (), {}, awaits, local, ""), url, seed, full)
    before = standing()
    for number in range(first, last, step):
        run = plan(seed, number)
        print(json.dumps({"number": number, "begins": True}), flush=True)
        faulthandler.dump_traceback_later(_WATCHDOG_SECONDS - 5)
        outcome = one(run, url, seed, full)
        faulthandler.cancel_dump_traceback_later()
        more = left(before)
        before |= set(more)
        print(json.dumps({"number": number, "fault": run.fault, **outcome, "left": more}), flush=True)


if __name__ == "__main__":
    main()
