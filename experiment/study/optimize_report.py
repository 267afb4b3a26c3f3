"""The tables and the plot of `optimize.py`, from the answers that it kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import row_file
from wordings import WORDINGS

from rlm_dspy.optimize.statistics import wilson

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "optimize.jsonl"
REPORT = HERE / "OPTIMIZE.md"
KINDS = ("fact", "count", "list", "comparison")
CONDITION = ("engine", "model", "policy", "optimizer")
HEAD = ["split", *CONDITION, "right", "95 %", *KINDS, *WORDINGS]
COSTS = ["split", *CONDITION, "first prompt, tokens", "calls a run", "seconds a run, median", "compile, seconds"]
COSTS += ["compile, calls", "compile, tokens in", "compile, tokens out", "how the wrong ones ended"]
INTRODUCTION = """# A small model before and after optimization

Made by `experiment/study/optimize.py`. Questions of the split `final` are held out: over texts of 100,000
characters, of whose templates, names, wordings and seeds optimizers saw none. By those of `dev` a policy was
chosen. `policy` is what a condition starts from; every optimizer has the model itself as teacher, prompt and
reflection model. `trajectories, nearest` shows as many demos as `trajectories`: for each run the nearest of all
that the same runs gave, so its compile costs nothing more. At most 4 turns and 16 sub-calls a run, greedy
decoding, one thread on a core of its own, with other processes on the other. Rows of a few questions say little:
mind the intervals (Wilson). A compile that was begun again counts what its last start took. `shipped-1` and so on
are earlier policies. `shipped-5` has the runs of `shipped` but those over texts of rows, and code that read fewer
forms of tables; `shipped, before rows` is `shipped-5` with code that read none. `shipped, before captions` did not
show what stands above a table to the model that reads a row; asking was broken off to change that. `candidate-4`
has the runs of `shipped` but for one over rows: it counts entries of a log, and made the model list records for
facts. `only comparison` and so on have those runs of `shipped` whose questions are of one kind, and answer that
kind alone.
"""
Answers = list[dict[str, Any]]


def rows() -> Answers:
    """Return the answers so far."""
    return row_file.read(RESULTS)


def report(answered: Answers, path: Path) -> None:
    """Write the tables of answers to `path`; `plot` draws what it refers to."""
    asked = grouped(answered)
    failed = [row for row in answered if row["number"] is None]
    if not asked:
        path.write_text(f"{INTRODUCTION}\nNo question has been asked yet.\n", encoding="utf-8")
        return
    lines = [INTRODUCTION, "## Right answers, by kind and by wording", "", _line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line([*names, *_shares(answers)]) for names, answers in asked.items()]
    lines += ["", "## What it takes", "", _line(COSTS), _line(["---"] * len(COSTS))]
    lines += [_line([*names, *_costs(answers)]) for names, answers in asked.items()]
    if failed:
        lines += ["", "## What did not compile", ""]
        lines += [f"- {', '.join(row['condition'].values())}: {' '.join(row['error'].split())}" for row in failed]
    if path.with_suffix(".svg").exists():
        lines += ["", f"![The share of held-out questions that are right]({path.with_suffix('.svg').name})"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def grouped(answered: Answers) -> dict[tuple[str, ...], Answers]:
    """Return the answers by condition, in the order in which conditions first answered."""
    found: dict[tuple[str, ...], Answers] = {}
    for row in answered:
        if row["number"] is not None:
            found.setdefault((row["split"], *(row["condition"][name] for name in CONDITION)), []).append(row)
    return found


def _shares(answers: Answers) -> list[str]:
    """Return the right answers of all, of each kind and of each wording."""
    good = sum(row["right"] for row in answers)
    low, high = wilson(good, len(answers))
    parts = [[row for row in answers if row["kind"] == kind] for kind in KINDS]
    parts += [[row for row in answers if row["wording"] == wording] for wording in WORDINGS]
    told = [f"{sum(row['right'] for row in part)} of {len(part)}" for part in parts]
    return [f"{good} of {len(answers)}", f"{low:.0%} to {high:.0%}", *told]


def _costs(answers: Answers) -> list[str]:
    """Return the prompt, the calls and the seconds of a run, and what the compile took, if there was one."""
    middle = len(answers) // 2
    numbers = [
        sorted(row[name] for row in answers)[middle] for name in ("first_prompt_tokens", "calls", "seconds")
    ]
    cost = _cost(answers[0]["condition"])
    spent = (
        [f"{cost[name]:,}" for name in ("seconds", "calls", "prompt_tokens", "completion_tokens")] if cost else []
    )
    ends = Counter(str(row.get("error", row["stop"])).partition(":")[0] for row in answers if not row["right"])
    wrong = ", ".join(f"{end} {times}" for end, times in ends.most_common())
    return [*(f"{number:,.0f}" for number in numbers), *(spent or [""] * 4), wrong]


def compiled_file(condition: dict[str, str]) -> Path:
    """Return where the compiled program of a condition is kept; what it took is beside it."""
    return RESULTS.with_suffix("") / f"{'_'.join(condition.values()).replace(', ', '-')}.json"


def _cost(condition: dict[str, str]) -> dict[str, int]:
    file = compiled_file(condition).with_suffix(".cost.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def plot(answered: Answers, path: Path) -> None:
    """Draw the share of right answers with its interval, a bar a condition; nothing without held-out questions."""
    drawn = grouped([row for row in answered if row.get("split") == "final"])
    if not drawn:
        return
    import matplotlib as mpl  # noqa: PLC0415  # for the plot only

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "optimize"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(9, 0.32 * len(drawn) + 1.2))
    labels = []
    for at, ((_, *names), answers) in enumerate(reversed(drawn.items())):
        good, n = sum(row["right"] for row in answers), len(answers)
        low, high = wilson(good, n)
        axes.barh(at, good / n, color="#999999" if names[0] != "ours" else "#4c72b0")
        axes.plot([low, high], [at, at], color="black", linewidth=1)
        labels.append(f"{names[0]}, {names[1]}, policy {names[2]}, optimizer {names[3]} ({good} of {n})")
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of held-out questions right, with 95 % interval")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
