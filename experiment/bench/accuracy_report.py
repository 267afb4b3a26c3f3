"""The table of `accuracy.py`, and its forecast of what is still to be run."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rlm_dspy.optimize.statistics import wilson

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
import row_file  # scripts of that folder are run, not installed

HERE = Path(__file__).parent
REPORT = HERE / "ACCURACY.md"
RESULTS = HERE / "results" / "accuracy.jsonl"
Row = dict[str, Any]
_GROUP = ("engine", "family", "chars")
_SETTINGS = ("model", "sub_model", "turns", "calls", "output_chars", "policy")


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share of them lies, as the nearest of them."""
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))]


def forecast(rows: list[Row], left: list[Row], settings: Row) -> str:
    """Return what the runs that are left will take, judged by those of their kind that have been made.

    Half of the runs of a kind take up to p50, nineteen of twenty up to p95, as far as few runs can tell.

    Args:
        rows: The runs so far.
        left: Engine, family and chars of each run to come.
        settings: The settings that they share with the rows to judge by.
    """
    like = [row for row in rows if all(row[name] == value for name, value in settings.items())]
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in like:
        groups[tuple(row[name] for name in _GROUP)].append(row)
    lines = ["", f"{'what is left':<44}{'runs':>5}  tokens p50/p95       USD p50/p95        s p50/p95"]
    totals = {"tokens": 0.0, "cost": 0.0, "seconds": 0.0}
    unknown = False
    for key, count in Counter(tuple(row[name] for name in _GROUP) for row in left).items():
        made = groups.get(key)
        name = f"{key[0]}, {key[1]}, {key[2]:,}"
        if not made:
            lines.append(f"{name:<44}{count:>5}  no run to judge by")
            unknown = True
            continue
        tokens = [float(row["input_tokens"] + row["output_tokens"]) for row in made]
        costs = [row["cost"] for row in made if row["cost"] is not None]
        seconds = [row["seconds"] for row in made]
        priced = f"{quantile(costs, 0.5):.4f}/{quantile(costs, 0.95):.4f}" if costs else "unknown"
        lines.append(
            f"{name:<44}{count:>5}  {quantile(tokens, 0.5):,.0f}/{quantile(tokens, 0.95):,.0f}".ljust(72)
            + priced.ljust(19)
            + f"{quantile(seconds, 0.5):.1f}/{quantile(seconds, 0.95):.1f}"
        )
        totals["tokens"] += count * sum(tokens) / len(tokens)
        totals["cost"] += count * sum(costs) / len(costs) if costs else 0.0
        totals["seconds"] += count * sum(seconds) / len(seconds)
        unknown |= not costs
    words = f"In all about {totals['tokens']:,.0f} tokens, ${totals['cost']:.2f}"
    words += " and what has no known price" if unknown else ""
    return "\n".join([*lines, "", f"{words}, {totals['seconds'] / 60:.1f} minutes.", ""])


def outcome_of(row: Row) -> str:
    """Return what became of a run: right, wrong, no answer, or the kind of its error."""
    if row["right"]:
        return "right"
    if row["error"]:
        return str(row["error"]).partition(":")[0]
    return "wrong" if row["answer"] else "no answer"


def key_of(row: Row) -> tuple[Any, ...]:
    """Return what a row answers, under which settings."""
    names = ("engine", "family", "chars", "seed", "split", "model", "sub_model", "turns", "calls", "output_chars")
    return (*(row[name] for name in names), row["policy"] if row["engine"].startswith("ours") else "")


def read_rows() -> list[Row]:
    """Return the rows so far; of one that was asked again, the last."""
    return list({key_of(row): row for row in row_file.read(RESULTS)}.values())


def write_report(rows: list[Row]) -> None:
    """Write the table of all results so far."""
    if not rows:
        return
    lines = [
        "# Right answers, side by side",
        "",
        "Made by `experiment/bench/accuracy.py` from `results/accuracy.jsonl`. Tasks are those of `families.py`,",
        "and `articles` the questions on `articles.md`. Intervals: 95 %, Wilson.",
        *sections(rows, level="##"),
    ]
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def short_lines() -> list[str]:
    """Return the section of the side-by-side report, from the rows that were kept; none if there are none."""
    rows = read_rows()
    says = "Made by `accuracy.py`. More of the embedded model is in [EMBEDDED.md](EMBEDDED.md); before and after "
    says += "optimization in [OPTIMIZE.md](../study/OPTIMIZE.md)."
    return ["", "## Right answers", "", says, *sections(rows, level="###")] if rows else []


def sections(rows: list[Row], *, level: str) -> list[str]:
    """Return a table for each setting."""
    lines: list[str] = []
    settings: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        settings[tuple(row[name] for name in _SETTINGS)].append(row)
    for key, part in settings.items():
        named = dict(zip(_SETTINGS, key, strict=True))
        sub = f", {named['sub_model']} for sub-calls" if named["sub_model"] else ""
        policy = f", policy {named['policy']} for ours" if named["policy"] else ""
        limits = f"{named['turns']} turns, {named['calls']} sub-calls, {named['output_chars']:,} characters a turn"
        lines += ["", f"{level} {named['model']}{sub}{policy}", "", f"Limits: {limits}.", "", *table(part)]
    return lines


def table(rows: list[Row]) -> list[str]:
    """Return the table of the runs of one setting."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["family"], row["chars"], row["split"], row["engine"]].append(row)
    heads: tuple[str, ...] = (
        "family",
        "characters",
        "split",
        "engine",
        "right",
        "share",
        "95 % interval",
        "tokens a run, median",
    )
    heads += ("USD a run", "seconds, median", "not right")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (family, chars, split, engine), group in groups.items():
        right, count = sum(row["right"] for row in group), len(group)
        low, high = wilson(right, count)
        tokens = quantile([row["input_tokens"] + row["output_tokens"] for row in group], 0.5)
        costs = [row["cost"] for row in group if row["cost"] is not None]
        cost = f"{sum(costs) / len(costs):.4f}" if costs else "unknown"
        kinds = Counter(outcome_of(row) for row in group if not row["right"])
        told = ", ".join(f"{times} {kind}" for kind, times in kinds.most_common())
        lines.append(
            f"| {family} | {chars:,} | {split} | {engine} | {right}/{count} | {right / count:.0%} "
            f"| {low:.0%} to {high:.0%} | {tokens:,.0f} | {cost} "
            f"| {quantile([row['seconds'] for row in group], 0.5):.1f} | {told} |"
        )
    return lines
