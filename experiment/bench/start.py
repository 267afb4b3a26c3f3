"""Time the start of a process: the command line's `--version` and `--help`, and what an import takes.

    uv run python experiment/bench/start.py

Each is started `--runs` times, in turn, with the Python that runs this script; medians are shown. The row of an
empty program says what Python itself takes, the one of `import dspy` what this package cannot do without once a
question is asked. `import rlm_dspy` in a checkout that resolves its names on first use loads no `dspy`; the row of
`from rlm_dspy import RLM` does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

CLI = "import sys; from rlm_dspy.cli import main; sys.argv[:] = ['rlm-dspy', {!r}]; main()"
PROGRAMS = {
    "empty program": "pass",
    "rlm-dspy --version": CLI.format("--version"),
    "rlm-dspy --help": CLI.format("--help"),
    "import rlm_dspy": "import rlm_dspy",
    "from rlm_dspy import RLM": "from rlm_dspy import RLM",
    "import dspy": "import dspy",
}
"""What is timed; the command line as its script starts it."""


def seconds(program: str) -> float:
    """Return how long a program takes in a process of its own.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", action="append", choices=PROGRAMS, help="a row; by default all")
    given = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in given.only or PROGRAMS}
    for name in taken:
        seconds(PROGRAMS[name])  # writes the bytecode
    for _ in range(given.runs):
        for name, times in taken.items():
            times.append(seconds(PROGRAMS[name]))
    print(f"Load of the machine: {os.getloadavg()[0]:.1f}. Medians of {given.runs} processes.\n")
    print("| program | seconds | least |")
    print("|---|---|---|")
    for name, times in taken.items():
        print(f"| `{name}` | {statistics.median(times):.2f} | {min(times):.2f} |")


if __name__ == "__main__":
    main()
