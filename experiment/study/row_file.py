"""Files of results: one JSON object a line, written as they come."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """Return the rows of a file; none if there is no file. A last line that was cut short is left out.

    Raises:
        SystemExit: If another line is no JSON object; the message names it.
    """
    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            where = f"{path}, line {number}: {error}"
            if number < len(lines):
                sys.exit(f"{where}. Take the line out, or put back the file as it was committed.")
            print(f"{where}. The line was cut short, and is left out.", file=sys.stderr)
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    """Put rows into the place of a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    beside.replace(path)


def append(path: Path, row: Row) -> None:
    """Write a row at the end of a file, in the place of a last line that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        whole, _, last = file.read().rpartition(b"\n")
        if last and not _is_json(last):
            file.truncate(len(whole) + 1 if whole else 0)
            last = b""
        file.write(b"\n" * bool(last) + json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
