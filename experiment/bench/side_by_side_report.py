"""The tables and plots of the side-by-side bench, made from its rows."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accuracy_report
import tracing
from measures import FAULT_SUBS, FAULTS, MEASURES, SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
OURS = ("ours", "ours, local", "ours, folding")
NOT_PEERS = (*OURS, "direct")
Row = dict[str, Any]
Rows = dict[tuple[str, str], list[Row]]
"""Rows by measure and setting."""

COLUMNS: dict[str, list[tuple[str, str]]] = {
    "cold start": [("seconds to the first request", "seconds"), ("MiB", "mib")],
    "overhead": [
        ("start, ms", "start_ms"),
        ("turn, ms", "turn_ms"),
        ("end, ms", "end_ms"),
        ("MiB", "mib"),
    ],
    "cpu": [("CPU of a turn, ms", "turn_cpu_ms")],
    "long run": [
        ("calls", "calls"),
        ("characters sent", "chars"),
        ("share that an earlier call began with", "prefix_share"),
        ("the rest", "uncached_chars"),
        ("paid for, if a cached one costs a tenth", "paid_chars"),
        ("seconds", "seconds"),
    ],
    "sub-calls": [
        ("right of 200", "right"),
        ("seconds", "seconds"),
        ("ideal", "ideal"),
        ("most at once", "at_once"),
    ],
    "concurrent": [
        ("right", "right"),
        ("of", "runs"),
        ("seconds", "seconds"),
        ("ideal", "ideal"),
        ("MiB", "mib"),
        ("commonest error", "error"),
        ("host as before", "host_whole"),
    ],
    "faults of sub-calls": [
        ("answers lost of 100", "lost"),
        ("paid and wasted", "paid_wasted"),
        ("calls", "calls"),
        ("run dead", "dead"),
        ("seconds", "seconds"),
    ],
    "faults of turns": [
        ("dead of 3", "dead"),
        ("wrong", "wrong"),
        ("paid and wasted", "paid_wasted"),
        ("longest, s", "seconds"),
    ],
    "bad cells": [("the run", "became"), ("harmed", "host"), ("seconds", "seconds"), ("MiB", "mib")],
}
SAYS = {
    "cold start": "From the start of the process to the first request that the server sees. Median of three.",
    "overhead": (
        "Time beside the model's, in a warm process: from the call to the first request, between a reply and the "
        "next request (median of five), and from the last reply to the answer. The model replies at once; the "
        "input is one string."
    ),
    "cpu": (
        "CPU time of a turn in the engine's process and its children, from runs of 42 turns and of 2 over 1 KB: "
        "unlike wall time it hardly depends on what else the machine does."
    ),
    "long run": (
        "30 turns that print 100,000 characters in all, and one that submits. A beginning that an earlier call of "
        "the run had too is what a provider's prompt cache can serve; the rest is paid in full."
    ),
    "sub-calls": "200 sub-calls of 100 ms in one batch, and two turns of 100 ms.",
    "concurrent": "Runs in one process, all begun at once; five turns of 200 ms over 100,000 characters.",
    "faults of sub-calls": (
        "One in ten of 100 sub-calls fails: refused (429, 500), no reply for ten seconds and then a closed "
        "connection, a reply that is no JSON, a reply cut off. The last three are billed. A retry is answered."
    ),
    "faults of turns": "The same for a run's own calls: three runs of twelve turns, first fault early to late.",
    "bad cells": (
        "The second of four cells does what it should not, after a value was computed that the last one submits. "
        "Cells get five seconds where the library has such a limit."
    ),
}


REASONS = """
Where a target is not met, and what else is lost:

- Most libraries of the long run append to their messages, so they send about the same, and caches serve most.
  What is printed must be sent once. Only folding sends less in all, at the price of the cache: `ours, folding` has
  `Limits(max_context_tokens=...)`, which is off in the other rows.
- What no cache can hold is what was printed, the code, and what a library says around them. `minrlm` shows 2,000
  characters of a turn whatever is asked, of the 3,334 that are printed here, so it sends less.
- `rlms`, `minrlm` and `recursive-llm` run code in the caller's process, the last in a restricted form of Python,
  and stage the input once, as ours does in a confined process of its own; the distance to `dspy.RLM`, which sends
  the input again each turn, is the one that grows with the input.
- Of 200 runs at once, 1,000 requests in all, the time is the CPU's of one Python process: `direct`, which makes
  one request a run and runs no code, tells how much of it is the client's. All runs share one address and, where
  the library lets them, one client. More cores would not help one process; several processes would.
- 200 confined runs have 200 worker processes; in the caller's process (`ours, local`) they take less.
- `recursive-llm` lives through all bad cells: its Python has no imports. Ours loses the state of `os._exit`, and
  says so.
- A cold start of ours is slow: a confined process is made, with the libraries that code may import in it. A turn
  of `dspy.RLM` over 1 KB is quicker, as its worker is a plain process; from 1 MB on it is slower.
- `predict-rlm` loses all answers of 100 sub-calls, with faults or without: at five or more it does not return.
"""


def write_report(rows: list[Row], folder: Path) -> Path | None:
    """Write RESULTS.md into a folder, and the plots beside it. Return its path; None if there is nothing to tell.

    What other scripts measured of this project is told in the report of the repository alone.
    """
    about = {row["engine"]: row for row in rows if row["measure"] == "about"}
    tables = grouped(rows)
    measured = [row for row in rows if row["measure"] != "about"]
    if not measured:
        return None
    lines = [
        "# Side by side",
        "",
        "Made by `experiment/bench/side_by_side.py` from `results/side_by_side.jsonl`. One scripted model answers",
        "all engines over HTTP, each in its format (`dialects.py`). Nothing here says how well a model answers.",
        "",
        *machine_lines(about, measured),
        "",
        *engine_lines(about),
        "",
        *target_lines(tables),
    ]
    for measure in MEASURES.values():
        parts = [(setting, tables[measure.name, setting]) for setting in measure.settings]
        found = [line for setting, part in parts if part for line in table_lines(measure.name, setting, part)]
        if found:
            lines += ["", f"## {measure.name[0].upper()}{measure.name[1:]}", "", SAYS[measure.name], *found]
    if folder == HERE:
        lines += [*tracing.report_lines(), *accuracy_report.short_lines()]
    lines += plot_lines(tables, folder)
    written = folder / "RESULTS.md"
    written.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


def grouped(rows: list[Row]) -> Rows:
    """Return the rows by measure and setting; there is an empty list for what was not measured."""
    tables: Rows = defaultdict(list)
    for row in rows:
        tables[row["measure"], row["setting"]].append(row)
    for row in tables["long run", ""]:
        if row.get("uncached_chars"):
            row["paid_chars"] = row["uncached_chars"] + (row["chars"] - row["uncached_chars"]) // 10
    return tables


def machine_lines(about: dict[str, Row], measured: list[Row]) -> list[str]:
    """Return what was measured where and when."""
    of_engine = {name: row["machine"] for name, row in about.items()}
    machines: dict[str, list[Row]] = defaultdict(list)
    for row in measured:
        machines[_described(row.get("machine") or of_engine[row["engine"]])].append(row)
    days = sorted(row["when"][:10] for row in measured)
    loads = sorted(row["load_before"] for row in measured)
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return [
        *(f"- {words}: {_which(found)}" for words, found in machines.items()),
        f"- Measured {when}, with a load of {loads[0]} to {loads[-1]} (median {loads[len(loads) // 2]}) before",
        "  each row: above the number of cores, times are worth their ratios only.",
        "- Nothing is random: the script and the faults are the same for every engine.",
    ]


def _described(machine: Row) -> str:
    told = "{cpu}, {cores} cores, {memory_gib} GiB, {system}, Python {python}, commit {commit}"
    return told.format(**machine)


def _which(rows: list[Row]) -> str:
    """Return in words which rows were measured on a machine."""
    names = ", ".join(dict.fromkeys(row["engine"] for row in rows))
    kinds = dict.fromkeys(row["measure"] for row in rows)
    return f"{len(rows)} rows ({names}; {', '.join(kinds) if len(kinds) < len(COLUMNS) else 'all measures'})"


def engine_lines(about: dict[str, Row]) -> list[str]:
    """Return the table of engines."""
    lines = [
        "| engine | version | code runs in | set beside the limits, or why it cannot run |",
        "|---|---|---|---|",
    ]
    for name, row in about.items():
        told = f"cannot run: {cell(row['failed'])}" if "failed" in row else row["notes"]
        lines.append(f"| {name} | {row.get('version', '')} | {row.get('where', '')} | {told} |")
    return lines


def best(rows: list[Row], value: str, names: Callable[[str], bool], pick: Callable[..., Row] = min) -> Row | None:
    """Return the row with the best value among engines of some names; rows that failed are left out."""
    found = [row for row in rows if names(row["engine"]) and not row.get("failed") and row.get(value) is not None]
    return pick(found, key=lambda row: row[value]) if found else None


def target_lines(tables: Rows) -> list[str]:
    """Return the targets beside what was seen."""
    lines = ["## Targets", "", "| target | ours | best peer | ratio | met |", "|---|---|---|---|---|"]

    def compare(words: str, rows: list[Row], value: str, most: float, *, ours: str = "ours") -> None:
        mine = best(rows, value, lambda name: name == ours)
        peer = best(rows, value, lambda name: name not in NOT_PEERS)
        if mine is None or peer is None:
            lines.append(f"| {words} | not measured | | | |")
            return
        ratio = mine[value] / peer[value] if peer[value] else float("inf")
        met = "yes" if ratio <= most else "no"
        seen = f"{number(mine[value])} | {number(peer[value])} ({peer['engine']}) | {ratio:.3g}"
        lines.append(f"| {words} | {seen} | {met} |")

    compare("characters sent over 30 turns: at most 1/5", tables["long run", ""], "chars", 1 / 5)
    compare("of them, what no cache can hold: no more", tables["long run", ""], "uncached_chars", 1)
    compare("overhead of a turn at 100 MB, ms: at most 1/100", tables["overhead", "100 MB"], "turn_ms", 1 / 100)
    runs = [*tables["concurrent", "200 in threads"], *tables["concurrent", "200 in async"]]
    whole = [row for row in runs if row.get("right") == row.get("runs")]
    compare("200 runs at once, seconds: at most 1/5", whole, "seconds", 1 / 5)
    lost = [row for (measure, _), rows in tables.items() if measure == "faults of sub-calls" for row in rows]
    for name in dict.fromkeys(row["engine"] for row in lost):
        own = [row for row in lost if row["engine"] == name]
        seen = ", ".join(f"{row['setting']} {row.get('lost', FAULT_SUBS)}" for row in own)
        if name in OURS:
            met = "yes" if all(row.get("lost") == 0 for row in own) else "no"
            met = met if {row["setting"] for row in own} == set(FAULTS) or met == "no" else "so far"
            lines.append(f"| answers lost to faults, of {FAULT_SUBS}: 0 ({name}) | {seen} | | | {met} |")
        else:
            lines.append(f"| the same, {name} | | {seen} | | |")
    return [*lines, *REASONS.rstrip().split("\n")]


def table_lines(measure: str, setting: str, rows: list[Row]) -> list[str]:
    """Return the table of one measure in one setting."""
    columns = COLUMNS[measure]
    lines = ["", *([f"### {setting}", ""] if setting else [])]
    lines += [f"| engine | {' | '.join(head for head, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        if row.get("failed") and columns[0][1] not in row:
            lines.append(f"| {row['engine']} | {cell(row['failed'])} |" + " |" * (len(columns) - 1))
            continue
        values = [cell(number(row.get(name))) for _, name in columns]
        if row.get("failed"):
            values[-1] += f" ({cell(row['failed'])[:120]})"
        lines.append(f"| {row['engine']} | {' | '.join(values)} |")
    return lines


def number(value: Any) -> str:
    """Return a value as the tables show it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def cell(words: str) -> str:
    """Return words that do not end a cell of a table."""
    return " ".join(words.split()).replace("|", "/")[:200]


def plot_lines(tables: Rows, folder: Path) -> list[str]:
    """Draw the plots that there are rows for; return the lines that show them."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "side by side"  # the same rows make the same file
    shown = [
        name
        for name, draw in (("overhead.svg", draw_overhead), ("long_run.svg", draw_long_run))
        if draw(tables, folder / name)
    ]
    return ["", "## Plots", *(line for name in shown for line in ("", f"![{name}]({name})"))] if shown else []


def draw_overhead(tables: Rows, path: Path) -> bool:
    """Draw the overhead of a turn against the size of the input."""
    from matplotlib import pyplot as plt

    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for setting, chars in SIZES.items():
        for row in tables["overhead", setting]:
            if row.get("turn_ms") and not row.get("failed"):
                points[row["engine"]].append((chars, row["turn_ms"]))
    if not points:
        return False
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, line in points.items():
        style = {"linewidth": 2.5} if name in OURS else {"linewidth": 1.2, "linestyle": "--"}
        axes.plot(*zip(*line, strict=True), marker="o", markersize=4, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="characters of input", ylabel="overhead of a turn, ms")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)
    return True


def draw_long_run(tables: Rows, path: Path) -> bool:
    """Draw what 30 turns send, the part that a cache can hold in a lighter shade."""
    from matplotlib import pyplot as plt

    rows = [row for row in tables["long run", ""] if row.get("chars") and not row.get("failed")]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(7, 0.5 + 0.45 * len(rows)))
    names = [row["engine"] for row in rows]
    rest = [row["uncached_chars"] / 1e6 for row in rows]
    again = [(row["chars"] - row["uncached_chars"]) / 1e6 for row in rows]
    axes.barh(names, rest, color="#1f4e79", label="new, or changed")
    axes.barh(names, again, left=rest, color="#b8cfe6", label="begins as an earlier call did")
    axes.set(xlabel="million characters sent over 30 turns")
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    save(figure, path)
    return True


def save(figure: Any, path: Path) -> None:
    """Write a figure, without the date."""
    from matplotlib import pyplot as plt

    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
