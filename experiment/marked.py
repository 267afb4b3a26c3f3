"""Tables in the documentation that scripts make: each stands between two marks of its name."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parent / "docs" / "benchmarks.md"


def between_marks(name: str, table: str) -> str:
    """Return a table, which ends with a line break, with the marks of its name around it."""
    begin, end = _marks(name)
    return f"{begin}{table}{end}"


def put(name: str, table: str) -> None:
    """Put a table in the place of the one that stands between the marks of its name.

    Raises:
        ValueError: If the page has no such marks.
    """
    begin, end = _marks(name)
    text = PAGE.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{PAGE.name} has no place for it: put {begin.strip()} and {end.strip()} there.")
    before, _, rest = text.partition(begin)
    PAGE.write_text(before + between_marks(name, table) + rest.partition(end)[2], encoding="utf-8")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
