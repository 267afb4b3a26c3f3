"""The measures of the side-by-side bench: each asks one engine for one thing and returns what was seen as a row.

A measure is a function of a `Bench` and an engine. It starts what it needs and leaves nothing behind.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dialects import CELLS, KEPT, LOST, Script
from processes import SECRET, EngineDied, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from processes import Engine, ScriptedServer

Values = dict[str, Any]
QUESTION = "How many characters are in the input?"
SIZES = {"1 KB": 10**3, "1 MB": 10**6, "100 MB": 10**8, "1 GB": 10**9}
LONG_TURNS = 31
LONG_PRINT = 3_334  # on 30 turns: 100 KB
SUBS = 200
SUB_SECONDS = 0.1
RUN_SECONDS = 0.2
RUN_TURNS = 5
FAULTS = ("429", "500", "hang", "garbage", "cut")
FAULT_SUBS = 100
FAULT_TURNS = 12
FAULT_FIRSTS = (1, 4, 7)
CELL_SECONDS = 5.0


@dataclass(frozen=True)
class Ended:
    """What became of a request to a worker.

    Attributes:
        outcomes: One a run: `answer`, `error`, `started`, `ended`.
        counts: What the server counted, one a run.
        seconds: From the first run's beginning to the last one's end.
    """

    outcomes: list[Values]
    counts: list[Values]
    seconds: float


@dataclass
class Bench:
    """The scripted server, and how long a request may take."""

    server: ScriptedServer
    patience: float = 120.0

    def play(
        self,
        worker: Worker,
        scripts: list[Script],
        chars: int,
        *,
        mode: str = "threads",
        shared: bool = False,
        **limits: Any,
    ) -> Ended:
        """Let a worker run scripts, all at once.

        Args:
            worker: The engine.
            scripts: What the model does, run by run.
            chars: Characters of the input.
            mode: `threads` or `async`.
            shared: Whether all runs ask at one address, and so may share a client.
            limits: See the worker's `Limits`.

        Raises:
            EngineDied: If it ends, hangs or takes too much memory.
        """
        names = [self.server.begin(script) for script in scripts]
        counts: list[Values] = []
        request = {
            "op": "run",
            "mode": mode,
            "base_urls": [self.server.shared_url if shared else self.server.base_url(name) for name in names],
            "context": {"chars": chars},
            "questions": [f"{QUESTION} [[run {name}]]" if shared else QUESTION for name in names],
            "limits": {"turns": max(script.turns for script in scripts) + 1, **limits},
        }
        try:
            answer = worker.ask(request, self.patience)
        finally:
            counts += [self.server.end(name) for name in names]
        return Ended(answer["outcomes"], counts, answer["ended"] - answer["started"])

    def warm(self, worker: Worker) -> None:
        """Let a worker do once what is slow the first time."""
        self.play(worker, [Script(worker.engine.dialect, turns=2)], 1_000)


@dataclass(frozen=True)
class Measure:
    """One table.

    Attributes:
        name: Its name in the rows.
        settings: What is varied.
        run: Measures one engine in one setting.
        skips: Engines for which it says nothing.
        heavy: Settings that are left out unless asked for.
    """

    name: str
    settings: tuple[str, ...]
    run: Callable[[Bench, Engine, str], Values]
    skips: frozenset[str] = field(default_factory=frozenset)
    heavy: frozenset[str] = field(default_factory=frozenset)


def milliseconds(seconds: float | None) -> float | None:
    """Return milliseconds with three digits that mean something."""
    return None if seconds is None else float(f"{seconds * 1e3:.3g}")


def expected(engine: Engine, chars: int) -> str:
    """Return the answer of a run that went as it should."""
    return "done" if engine.name == "direct" else str(chars)


def trial(bench: Bench, engine: Engine) -> Values:
    """Say what the engine is, or why it cannot run here: it must do three turns and submit."""
    with Worker(engine) as worker:
        about = worker.ask({"op": "about"}, 60)
        turns = 1 if engine.name == "direct" else 3
        ended = Bench(bench.server, patience=60.0).play(worker, [Script(engine.dialect, turns=turns)], 1_000)
        (outcome,), (counts,) = ended.outcomes, ended.counts
        if outcome["answer"] == expected(engine, 1_000):
            return {**about, "where": engine.where}
        words = f"after {sum(counts['requests'].values())} calls it answered {outcome['answer']!r}"
        return {**about, "where": engine.where, "failed": outcome["error"] or words}


def cold_start(bench: Bench, engine: Engine, _: str) -> Values:
    """From the start of the process to its first request; the median of three."""
    seconds, memory = [], []
    for _number in range(3):
        with Worker(engine) as worker:
            ended = bench.play(worker, [Script(engine.dialect, turns=1)], 1_000)
            if ended.outcomes[0]["answer"] != expected(engine, 1_000):
                return {"failed": ended.outcomes[0]["error"] or f"answered {ended.outcomes[0]['answer']}"}
            seconds.append(ended.counts[0]["first_at"] - worker.spawned)
            memory.append(worker.peak_bytes >> 20)
    return {"seconds": round(statistics.median(seconds), 2), "mib": max(memory)}


def overhead(bench: Bench, engine: Engine, setting: str) -> Values:
    """Milliseconds that a run, and each of its turns, take beside the model, with an input of some size."""
    chars, turns = SIZES[setting], 6
    limit = (16 if chars >= 10**9 else 10) << 30
    with Worker(engine, most_bytes=limit) as worker:
        bench.warm(worker)
        script = Script(engine.dialect, turns=1 if engine.name == "direct" else turns, print_chars=100)
        bench.play(worker, [script], chars)  # makes the input, and what a first run of the size needs
        ended = bench.play(worker, [script], chars)
        (outcome,), (counts,) = ended.outcomes, ended.counts
        if outcome["answer"] != expected(engine, chars):
            return {"failed": outcome["error"] or f"answered {outcome['answer']}"}
        return {
            "start_ms": milliseconds(counts["first_at"] - outcome["started"]),
            "turn_ms": milliseconds(statistics.median(counts["waits"])) if counts["waits"] else None,
            "end_ms": milliseconds(outcome["ended"] - counts["last_at"]),
            "mib": worker.peak_bytes >> 20,
        }


def cpu(bench: Bench, engine: Engine, _: str) -> Values:
    """CPU time of a turn, from a long run and a short one."""
    long, short = 42, 2
    with Worker(engine) as worker:
        bench.warm(worker)
        taken = []
        for turns in (long, short):
            before = worker.cpu_seconds()
            ended = bench.play(worker, [Script(engine.dialect, turns=turns, print_chars=10)], 1_000)
            taken.append(worker.cpu_seconds() - before)
            if ended.outcomes[0]["answer"] != expected(engine, 1_000):
                return {"failed": ended.outcomes[0]["error"] or "the wrong answer"}
    return {"turn_cpu_ms": milliseconds((taken[0] - taken[1]) / (long - short))}


def long_run(bench: Bench, engine: Engine, _: str) -> Values:
    """What 30 turns that print 100 KB in all send, and how much of it a cache could hold."""
    with Worker(engine) as worker:
        bench.warm(worker)
        script = Script(engine.dialect, turns=LONG_TURNS, print_chars=LONG_PRINT)
        ended = bench.play(worker, [script], 10**6)
    (outcome,), (counts,) = ended.outcomes, ended.counts
    sent = counts["chars"]
    return {
        "answered": outcome["answer"] == expected(engine, 10**6),
        "failed": outcome["error"],
        "calls": sum(counts["requests"].values()),
        "body_bytes": counts["body_bytes"],
        "chars": sent,
        "prefix_share": round(counts["prefix_chars"] / sent, 4),
        "uncached_chars": sent - counts["prefix_chars"],
        "seconds": round(ended.seconds, 2),
    }


def sub_calls(bench: Bench, engine: Engine, setting: str) -> Values:
    """200 sub-calls of 100 ms in one batch."""
    with Worker(engine) as worker:
        bench.warm(worker)
        script = Script(engine.dialect, turns=2, subs=SUBS, latency=SUB_SECONDS)
        limits: Values = {"concurrency": SUBS} if setting == "200 at once" else {}
        ended = bench.play(worker, [script], 10_000, cell_seconds=60.0, **limits)
    (outcome,), (counts,) = ended.outcomes, ended.counts
    return {
        "right": outcome["answer"],
        "failed": outcome["error"],
        "seconds": round(ended.seconds, 2),
        "ideal": 3 * SUB_SECONDS,
        "at_once": counts["most_at_once"],
        "calls": counts["requests"].get("sub", 0),
    }


def concurrent(bench: Bench, engine: Engine, setting: str) -> Values:
    """Many runs at once in one process, five turns of 200 ms each, all at one address."""
    count, mode = int(setting.split(maxsplit=1)[0]), setting.rsplit(maxsplit=1)[-1]
    turns = 1 if engine.name == "direct" else RUN_TURNS
    script = Script(engine.dialect, turns=turns, latency=RUN_SECONDS, print_chars=200)
    with Worker(engine, most_bytes=12 << 30) as worker:
        about = worker.ask({"op": "about"}, 60)
        if mode not in about["modes"]:
            return {"failed": "no async API"}
        bench.warm(worker)
        base = worker.peak_bytes
        ended = bench.play(worker, [script] * count, 100_000, mode=mode, shared=True)
        health = worker.ask({"op": "health"}, 60)
        answer = expected(engine, 100_000)
        errors = [outcome["error"] for outcome in ended.outcomes if outcome["error"]]
        return {
            "right": sum(outcome["answer"] == answer for outcome in ended.outcomes),
            "runs": count,
            "seconds": round(ended.seconds, 2),
            "ideal": turns * RUN_SECONDS,
            "mib": worker.peak_bytes >> 20,
            "mib_before": base >> 20,
            "error": max(errors, key=errors.count) if errors else None,
            "host_whole": health["cwd"] and health["stdout"],
        }


def faults_of_subs(bench: Bench, engine: Engine, setting: str) -> Values:
    """One in ten of 100 sub-calls goes wrong: how many answers are lost, and how many that were paid for."""
    with Worker(engine) as worker:
        bench.warm(worker)
        script = Script(engine.dialect, subs=FAULT_SUBS, latency=0.05, fault=setting, fault_kind="sub")
        ended = bench.play(worker, [script], 10_000)
    (outcome,), (counts,) = ended.outcomes, ended.counts
    right = int(outcome["answer"]) if str(outcome["answer"]).isdigit() else 0
    return {
        "lost": FAULT_SUBS - right,
        "paid_wasted": counts["paid"].get("sub", 0) - right,
        "calls": counts["requests"].get("sub", 0),
        "dead": outcome["error"] is not None,
        "failed": outcome["error"],
        "seconds": round(ended.seconds, 2),
    }


def faults_of_turns(bench: Bench, engine: Engine, setting: str) -> Values:
    """One in ten of a run's own calls goes wrong: how many of three runs of twelve turns are dead."""
    values: Values = {"runs": len(FAULT_FIRSTS), "dead": 0, "wrong": 0, "paid_wasted": 0, "seconds": 0.0}
    turns = 1 if engine.name == "direct" else FAULT_TURNS
    for first in FAULT_FIRSTS:
        with Worker(engine) as worker:
            bench.warm(worker)
            first_fault = 0 if turns == 1 else first
            script = Script(engine.dialect, turns=turns, fault=setting, fault_kind="root", fault_first=first_fault)
            try:
                ended = bench.play(worker, [script], 10_000)
            except EngineDied as error:
                values["dead"] += 1
                values["failed"] = str(error)
                continue
        (outcome,), (counts,) = ended.outcomes, ended.counts
        right = outcome["answer"] == expected(engine, 10_000)
        values["dead"] += outcome["error"] is not None
        values["wrong"] += outcome["error"] is None and not right
        values["paid_wasted"] += counts["paid"].get("root", 0) if not right else counts["faults"].get("root", 0)
        values["seconds"] = round(max(values["seconds"], ended.seconds), 2)
        values["failed"] = outcome["error"] or values.get("failed")
    if setting in ("429", "500"):  # such a call is not paid for
        values["paid_wasted"] = 0 if not values["dead"] + values["wrong"] else values["paid_wasted"]
    return values


def bad_cells(bench: Bench, engine: Engine, setting: str) -> Values:
    """A cell that does what it should not: is the run alive, is its state, is the host?"""
    with Worker(engine, most_bytes=6 << 30) as worker:
        bench.warm(worker)
        script = Script(engine.dialect, turns=4, cell=setting, canary=str(worker.canary), secret=SECRET)
        health: Values = {}
        limits: Values = {"cell_seconds": CELL_SECONDS}
        try:
            ended = Bench(bench.server, patience=45.0).play(worker, [script], 10_000, **limits)
        except EngineDied as error:
            return {"became": "process dead", "failed": str(error), "host": "the process", "mib": _mib(worker)}
        (outcome,), (counts,) = ended.outcomes, ended.counts
        try:
            health = worker.ask({"op": "health"}, 10)
        except EngineDied as error:
            health = {"dead": str(error)}
        harmed = {
            "the process": "dead" in health,
            "its directory": health.get("cwd") is False,
            "its stdout": health.get("stdout") is False,
            "a file": not worker.canary.exists(),
            "a secret": counts["leaked"],
        }
        became = {KEPT: "went on", LOST: "state lost"}.get(str(outcome["answer"]), "run dead")
        return {
            "became": became,
            "failed": outcome["error"],
            "answer": outcome["answer"],
            "host": ", ".join(name for name, is_so in harmed.items() if is_so),
            "seconds": round(ended.seconds, 2),
            "mib": _mib(worker),
        }


def _mib(worker: Worker) -> int:
    return worker.peak_bytes >> 20


_NO_CODE = frozenset({"direct"})
MEASURES = {
    measure.name: measure
    for measure in (
        Measure("cold start", ("",), cold_start),
        Measure("overhead", tuple(SIZES), overhead, heavy=frozenset({"1 GB"})),
        Measure("cpu", ("",), cpu, skips=_NO_CODE),
        Measure("long run", ("",), long_run, skips=_NO_CODE),
        Measure("sub-calls", ("as shipped", "200 at once"), sub_calls, skips=_NO_CODE),
        Measure(
            "concurrent",
            ("32 in threads", "32 in async", "200 in threads", "200 in async"),
            concurrent,
        ),
        Measure("faults of sub-calls", FAULTS, faults_of_subs, skips=_NO_CODE),
        Measure("faults of turns", FAULTS, faults_of_turns),
        Measure("bad cells", tuple(CELLS), bad_cells, skips=_NO_CODE),
    )
}


def every(only: str, heavy: bool) -> Iterator[tuple[Measure, str]]:
    """Yield the measures with their settings, those whose name or setting has `only` in it."""
    for measure in MEASURES.values():
        for setting in measure.settings:
            if only.lower() in f"{measure.name} {setting}".lower() and (heavy or setting not in measure.heavy):
                yield measure, setting
