"""Measures a run over a folder of 20,000 files and 3 GB beside one over 20 files: memory, and cost per turn.

The model is scripted, so this says nothing about answers. The files are hard links to 200 texts of 150 KB, which
lie in the page cache: reading from a disk takes longer. Each folder is measured in a process of its own.

    python experiment/bench/folders.py            # both; writes FOLDERS.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

REPORT = Path(__file__).with_name("FOLDERS.md")
TEXTS, CHARS = 200, 150_000
SIZES = (20, 20_000)
STEPS = {
    "look": "print(len(files), files.glob('*/000001.txt'), sum(files.sizes.values()))",
    "read": "name = list(files)[-1]\nprint(name, len(files[name]), files[name][:80])",
    "grep 20 files": "print(files.grep('needle', list(files)[:20]))",
    "grep all": "found = files.grep('needle')\nprint(found)",
    "answer": "SUBMIT(answer=found[0][0])",
}


def make(folder: Path, count: int) -> None:
    """Make a folder of `count` files in folders of 1,000; one of them holds a needle."""
    texts = folder.parent / "texts"
    texts.mkdir()
    line = "The tide table of harbour {} says nothing of interest on this day.\n"
    for number in range(TEXTS):
        text = line.format(number) * (CHARS // len(line) + 2)
        (texts / str(number)).write_text(text[:CHARS], encoding="ascii")
    for number in range(count):
        inner = folder / f"{number // 1_000:03}"
        inner.mkdir(parents=True, exist_ok=True)
        os.link(texts / str(number % TEXTS), inner / f"{number:06}.txt")
    last = folder / f"{(count - 1) // 1_000:03}" / f"{count - 1:06}.txt"
    text = last.read_text(encoding="ascii")
    last.unlink()
    last.write_text(f"{text[:-8]}\nneedle\n", encoding="ascii")


class Memory(threading.Thread):
    """Samples the memory of this process and its descendants: each page once (PSS)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample until `end`."""
        while not self._ended.wait(0.05):
            self.most = max(self.most, pss_of_tree())

    def end(self) -> None:
        """Stop."""
        self._ended.set()
        self.join()


def pss_of_tree() -> int:
    """Return the PSS of this process and its descendants in bytes."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    tree, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree, grown = tree | more, bool(more)
    total = 0
    for pid in tree:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def measure(count: int) -> dict[str, Any]:
    """Run over a folder of `count` files; return what it took."""
    import dspy

    from rlm_dspy import RLM, Files
    from rlm_dspy.testing import ScriptedLM

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "folder"
        make(folder, count)
        lm = ScriptedLM([f"```python\n{code}\n```" for code in STEPS.values()])
        rlm = RLM("files, question -> answer: str")
        memory = Memory()
        before = pss_of_tree()
        memory.start()
        started = time.perf_counter()
        files = Files.open(folder)
        opened = time.perf_counter() - started
        with dspy.context(lm=lm):
            prediction = rlm(files=files, question="Which file holds the needle?")
        seconds = time.perf_counter() - started
        memory.end()
    assert prediction.answer.endswith(f"{count - 1:06}.txt"), prediction
    return {
        "files": count,
        "bytes": files.total,
        "open_seconds": round(opened, 2),
        "run_seconds": round(seconds, 2),
        "turn_seconds": {
            name: round(step["seconds"], 3) for name, step in zip(STEPS, prediction.trajectory, strict=True)
        },
        "first_message_chars": len(lm.history[0]["messages"][-1]["content"]),
        "prompt_chars": [sum(len(m["content"]) for m in call["messages"]) for call in lm.history],
        "host_mb_before": before >> 20,
        "most_mb": memory.most >> 20,
    }


def main() -> None:
    """Measure one folder here, or both in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, help="measure one folder in this process and print JSON")
    count = parser.parse_args().files
    if count:
        print(json.dumps(measure(count)))
        return
    rows = []
    for size in SIZES:
        done = subprocess.run(
            [sys.executable, __file__, "--files", str(size)], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    REPORT.write_text(report(rows), encoding="utf-8")


def report(rows: list[dict[str, Any]]) -> str:
    """Return the page of both measurements."""
    small, large = rows
    told = {
        "`Files.open`, s": [row["open_seconds"] for row in rows],
        "first message, characters": [row["first_message_chars"] for row in rows],
        "host and worker at most, MB": [row["most_mb"] for row in rows],
        "host before the run, MB": [row["host_mb_before"] for row in rows],
        **{f"turn `{name}`, s": [row["turn_seconds"][name] for row in rows] for name in STEPS},
        "prompt of each turn, characters": [", ".join(map(str, row["prompt_chars"])) for row in rows],
    }
    head = [f"{row['files']:,} files, {row['bytes'] / 1e9:.3f} GB" for row in (small, large)]
    lines = [f"| {name} | {one} | {other} |" for name, (one, other) in told.items()]
    return "\n".join(
        [
            "# A folder of 20 files and one of 20,000",
            "",
            f"By `folders.py`, one run each; load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores. The",
            "model is scripted; the files are hard links to 200 texts in the page cache. `grep all` reads all.",
            "",
            f"| | {head[0]} | {head[1]} |",
            "|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
