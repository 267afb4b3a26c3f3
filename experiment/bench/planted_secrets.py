"""How many signatures that a model might write in a REPL bring back a secret of the host.

    uv run python experiment/bench/planted_secrets.py --signatures 5000

Secrets are planted in the environment, in `__main__`, in a module on the path, in `dspy.settings` and in the LM.
Hypothesis writes signatures that reach for them, through every door of the REPL, in the confined interpreter; see
`tests/planting.py`. Printed are the attempts after which a secret came back, by door and by place; how often the
module on the path was run; and how often a function of the host was called. The right count of each is 0.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.planting import planted, scripted, search, written

BATCH = 50


def main() -> None:
    """Make the attempts and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signatures", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    attempts, lm, begun = written(given.signatures, given.seed), scripted(), time.monotonic()
    doors: collections.Counter[str] = collections.Counter()
    places: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, planted(Path(folder), lm) as plants:
        for first in range(0, len(attempts), BATCH):
            done = search(attempts[first : first + BATCH], plants, lm)
            doors.update(attempt.door for attempt, _ in done.found)
            places.update(place for _, found in done.found for place in found)
            sys.modules.pop("planted_module", None)
        print(f"{len(attempts)} signatures, {len(set(attempts))} different, {time.monotonic() - begun:.0f} s")
        print(f"a secret came back: {sum(doors.values())}", dict(doors), dict(places))
        print(f"the module on the path was run: {plants.executed}")
        print(f"a function of the host was called: {plants.called}")


if __name__ == "__main__":
    main()
