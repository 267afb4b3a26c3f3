"""What each engine runs of the replies in `tests/data/replies`, and whether that is what was meant.

    uv run --extra rlms python experiment/bench/replies.py

Each file is a reply as a model may write it; beside it stands the code to run. `dspy.RLM` and `rlms` read each
reply twice: as it is, and in the form that they ask for (within the field `code`; with fences marked `repl`).
Right is the code of the file, but for white space at its ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy

from rlm_dspy.interpreters import ScriptedInterpreter
from rlm_dspy.replies.reply_parser import read_reply
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
FILES = sorted((HERE.parents[1] / "tests" / "data" / "replies").glob("*.txt"))
REPORT = HERE / "REPLIES.md"


def ours(text: str) -> str:
    """Return the code that our RLM runs."""
    return read_reply(text).code


def upstream(text: str) -> str:
    """Return the code that `dspy.RLM` runs; nothing if it can read none."""
    repl = ScriptedInterpreter(["nothing", "nothing"])
    rlm = dspy.RLM("context, question -> answer", max_iters=1, interpreter_factory=lambda: repl)
    with dspy.context(lm=ScriptedLM(lambda _: text)), contextlib.suppress(Exception):
        rlm(context="a context", question="a question")
    return repl.calls[0].code if repl.calls else ""


def upstream_in_its_field(text: str) -> str:
    """Return the code that `dspy.RLM` runs of a reply within the fields that it asks for."""
    return upstream(f"[[ ## reasoning ## ]]\nI look.\n\n[[ ## code ## ]]\n{text}\n\n[[ ## completed ## ]]")


def rlms(text: str) -> str:
    """Return the code that `rlms` runs."""
    from rlm.utils.parsing import find_code_blocks

    return "\n".join(find_code_blocks(text))


def rlms_in_its_fences(text: str) -> str:
    """Return the code that `rlms` runs of a reply whose fences are marked as it asks."""
    return rlms(text.replace("```python", "```repl").replace("```py\n", "```repl\n"))


READERS: dict[str, Callable[[str], str]] = {
    "ours": ours,
    "dspy.RLM": upstream,
    "dspy.RLM, in its fields": upstream_in_its_field,
    "rlms": rlms,
    "rlms, in its fences": rlms_in_its_fences,
}


def main() -> None:
    """Read all files with all engines and write the table."""
    logging.disable(logging.ERROR)
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for file in FILES:
        kind, text = file.stem.split("_")[0], file.read_text(encoding="utf-8")
        meant = file.with_suffix(".code").read_text(encoding="utf-8").strip()
        for name, read in READERS.items():
            with contextlib.redirect_stdout(None):
                right[kind][name].append(read(text).strip() == meant)
    lines = [
        "# Replies: what is run of them",
        "",
        f"Made by `experiment/bench/replies.py` from {len(FILES)} files in `tests/data/replies`.",
        "",
        f"| shape | files | {' | '.join(READERS)} |",
        "|---" * (2 + len(READERS)) + "|",
    ]
    for kind, by_reader in sorted(right.items()):
        count = len(by_reader["ours"])
        lines.append(f"| {kind} | {count} | {' | '.join(str(sum(by_reader[name])) for name in READERS)} |")
    totals = [str(sum(sum(by_reader[name]) for by_reader in right.values())) for name in READERS]
    lines.append(f"| **all** | {len(FILES)} | {' | '.join(totals)} |")
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
