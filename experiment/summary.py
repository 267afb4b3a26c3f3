"""What a run came to and what it took, in the same words for every library."""

from __future__ import annotations

import re
from dataclasses import dataclass

CACHED = "none: the replies are those of an earlier run, from DSPy's cache"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One run.

    Attributes:
        answer: The answer; None if there is none.
        stop: Why the run ended: `submitted`, `extracted` or `unanswered`.
        turns: Calls of the root model.
        failed_turns: Those whose code failed, was refused, or was none.
        subcalls: Calls of sub-models.
        failed_subcalls: Those that raised.
        input_tokens: Of all calls.
        cached_input_tokens: Of them, those that the provider had cached.
        output_tokens: Of all calls.
        cost: USD; None if it is not known.
        seconds: Wall time.
    """

    answer: str | None
    stop: str
    turns: int
    failed_turns: int
    subcalls: int
    failed_subcalls: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost: float | None
    seconds: float

    def rows(self, text: str) -> list[tuple[str, str]]:
        """Return the summary as names and words; `text` is where the answer is looked for."""
        return [
            ("answer", str(self.answer)),
            ("stop", self.stop),
            ("turns", f"{self.turns}, of which {self.failed_turns} failed"),
            ("sub-calls", f"{self.subcalls}, of which {self.failed_subcalls} failed"),
            (
                "tokens",
                f"{self.input_tokens:,} in ({self.cached_input_tokens:,} cached)" if self.input_tokens else CACHED,
            ),
            ("", f"{self.output_tokens:,} out"),
            ("cost", "unknown" if self.cost is None else f"${self.cost:.4f}"),
            ("seconds", f"{self.seconds:.1f}"),
            ("in text", where(self.answer, text)),
        ]

    def show(self, text: str) -> None:
        """Print it."""
        print("\n=== summary")
        for name, words in self.rows(text):
            print(f"{name:<10} {words}")


def where(answer: str | None, text: str) -> str:
    """Return in words where an answer occurs in a text, character for character."""
    places = [match.start() for match in re.finditer(re.escape(answer), text)] if answer else []
    if not places:
        return "nowhere in these words: the model put it in its own, or made it up"
    lines = [text.count("\n", 0, place) + 1 for place in places]
    shown = ", ".join(f"line {line}" for line in lines[:5])
    return f"{shown}{f', and {len(lines) - 5} more' if len(lines) > 5 else ''}"
