"""Damaged and hostile documents: each ends in text or in one error, in bounded time and memory."""

from __future__ import annotations

import gc
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlm_dspy import Text
from rlm_dspy.errors import UnreadableDocument
from rlm_dspy.inputs import documents
from rlm_dspy.inputs.isolated import process
from tests.inputs.sample_documents import SAMPLES, WORD, archive, docx, epub, parts_of, pdf, xlsx

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bounds are those of Linux")
SEED = 20


def cut(content: bytes, chance: random.Random) -> bytes:
    """End it somewhere."""
    return content[: chance.randrange(1, len(content))]


def flip(content: bytes, chance: random.Random) -> bytes:
    """Change some bits."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 10, 100))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def garble(content: bytes, chance: random.Random) -> bytes:
    """Replace a stretch by noise."""
    start = chance.randrange(len(content))
    noise = chance.randbytes(chance.randrange(1, 200))
    return content[:start] + noise + content[start + len(noise) :]


def clear(content: bytes, chance: random.Random) -> bytes:
    """Replace a stretch by zeros."""
    start, count = chance.randrange(len(content)), chance.randrange(1, 200)
    return content[:start] + bytes(count) + content[start + count :]


def repeat(content: bytes, chance: random.Random) -> bytes:
    """Put a stretch somewhere else again."""
    start, end, target = sorted(chance.randrange(len(content)) for _ in range(3))
    return content[:target] + content[start:end] + content[target:]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, flip, garble, clear, repeat)


def damaged(count: int) -> list[tuple[str, bytes]]:
    """Return damaged documents of all kinds, some under the suffix of another kind, the same each time."""
    chance = random.Random(SEED)
    found = []
    for number in range(count):
        name = list(SAMPLES)[number % len(SAMPLES)]
        content = DAMAGES[number // len(SAMPLES) % len(DAMAGES)](SAMPLES[name](), chance)
        suffix = Path(chance.choice((name, *SAMPLES))).suffix
        found.append((f"{number}{suffix}", content))
    return found


def open_descriptors() -> int:
    """Return how many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> list[str]:
    """Return the processes that the main thread has started and that are not over."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def outcome(path: Path) -> str:
    """Return what opening a file ends in."""
    try:
        return "text" if str(Text.open(path)) else "nothing"
    except (UnreadableDocument, UnicodeDecodeError) as error:
        return type(error).__name__


@pytest.mark.parametrize(
    "count", [12, pytest.param(200, marks=[pytest.mark.by_hand, pytest.mark.timeout(1500)])], ids=str
)
def test_damaged_documents_end_in_text_or_in_one_error(count: int, tmp_path: Path) -> None:
    """None hangs, none reaches this process, none leaves a descriptor or a process behind."""
    gc.collect()  # what earlier tests left is not closed during this one
    before, running = open_descriptors(), set(children())
    ends = []
    for name, content in damaged(count):
        (tmp_path / name).write_bytes(content)
        started = time.monotonic()
        ends.append(outcome(tmp_path / name))
        assert time.monotonic() - started < 60
    assert set(ends) <= {"text", "UnreadableDocument", "UnicodeDecodeError"}
    assert len(set(ends)) > 1
    assert open_descriptors() <= before
    assert set(children()) <= running


def word(document: str) -> bytes:
    """Return a DOCX whose main part is this."""
    return archive(parts_of(docx("")) | {"word/document.xml": document})


def laughs() -> bytes:
    """Return a DOCX with entities that would expand to 3 TB."""
    entities = "".join(f'<!ENTITY e{level} "{f"&e{level - 1};" * 10}">' for level in range(1, 13))
    declared = f'<!DOCTYPE x [<!ENTITY e0 "lol">{entities}]>'
    body = "<w:body><w:p><w:r><w:t>&e12;</w:t></w:r></w:p></w:body>"
    return word(f'<?xml version="1.0"?>{declared}<w:document xmlns:w="{WORD}">{body}</w:document>')


def outside() -> bytes:
    """Return a DOCX with an entity that is a file of the system."""
    declared = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    body = "<w:body><w:p><w:r><w:t>left &e; right</w:t></w:r></w:p></w:body>"
    return word(f'<?xml version="1.0"?>{declared}<w:document xmlns:w="{WORD}">{body}</w:document>')


def sparse() -> bytes:
    """Return an XLSX with one cell at each end of its 17 billion."""
    book = xlsx({"A": [["a"]]})
    parts = parts_of(book)
    (name,) = [part for part in parts if "sheet1" in part]
    far = '<row r="1048576"><c r="XFD1048576" t="inlineStr"><is><t>z</t></is></c></row></sheetData>'
    return archive(parts | {name: parts[name].replace("</sheetData>", far)})


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("bomb.docx", lambda: docx(f"<w:p><w:r><w:t>{'a' * 150_000_000}</w:t></w:r></w:p>")),
        pytest.param("bomb.epub", lambda: epub("a" * 600_000_000), marks=pytest.mark.long),
        ("deep.docx", lambda: docx("<w:sdt><w:sdtContent>" * 200_000 + "</w:sdtContent></w:sdt>" * 200_000)),
        ("laughs.docx", laughs),
        ("sparse.xlsx", sparse),
        ("loop.pdf", lambda: pdf("a").replace(b"[4 0 R]", b"[2 0 R]")),
        ("counted.pdf", lambda: pdf("a").replace(b"/Count 1", b"/Count 9999")),
    ],
)
def test_a_bomb_ends_in_a_little_text_or_in_an_error(name: str, make: Callable[[], bytes], tmp_path: Path) -> None:
    """Whatever it claims to hold."""
    (tmp_path / name).write_bytes(make())
    try:
        assert len(Text.open(tmp_path / name)) < 2_000_000
    except UnreadableDocument as error:
        assert name in str(error)  # noqa: PT017 (either is right)


def test_an_entity_that_names_a_file_brings_nothing_of_it(tmp_path: Path) -> None:
    """The process that parses could not open it anyway."""
    (tmp_path / "outside.docx").write_bytes(outside())
    assert "root" not in str(Text.open(tmp_path / "outside.docx"))


ORPHAN = f"sleep {100_000 + os.getpid()}"
"""A process that no other test starts."""
ATTEMPTS = {
    "sleep": "import time; time.sleep(60)",
    "spin": "while True: pass",
    "orphan": f"import subprocess, time; subprocess.Popen({ORPHAN.split()}); time.sleep(60)",
    "hoard": "held = [bytes(1 << 20) for _ in range(10_000)]",
    "flood": "sys.stdout.write('x' * (3 << 20)); sys.stdout.flush()",
    "open": "bounds.close_files(); bounds.close_descriptors(); open('/etc/passwd')",
    "connect": "import socket; bounds.close_files(); bounds.close_descriptors(); socket.socket()",
    "environ": "sys.stdout.write(repr(dict(os.environ))); sys.stdout.flush()",
}
"""What hostile code in a parser may do."""


@pytest.fixture
def attempted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, str, bytes]]:
    """Return a function that runs an attempt; it returns the problem, its detail and the output."""
    monkeypatch.setattr(process, "MEMORY_BYTES", 128 << 20)
    shutil.copytree(process.FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(process, "FOLDER", tmp_path)

    def attempt(name: str) -> tuple[str, str, bytes]:
        job = f"import os, sys\ndef main(settings, bounds):\n    {ATTEMPTS[name]}\n    return {{}}\n"
        (tmp_path / "document.py").write_text(job, encoding="utf-8")
        report, output = process.run_isolated("document", {}, subprocess.DEVNULL, seconds=1, file_bytes=1 << 20)
        with output:
            return report.problem, report.detail, output.read()

    return attempt


@pytest.mark.parametrize("name", ["sleep", "spin", "orphan"])
def test_what_does_not_end_is_ended(name: str, attempted: Callable[[str], tuple[str, str, bytes]]) -> None:
    """With all that it has started."""
    assert attempted(name)[0] == "time"
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert ORPHAN not in running.splitlines()


@pytest.mark.parametrize(
    ("name", "problem", "told"),
    [
        ("hoard", "memory", ""),
        ("flood", "large", ""),
        ("open", "failed", "open files"),
        ("connect", "failed", "open files"),
    ],
)
def test_what_reaches_for_more_than_its_own_fails(
    name: str, problem: str, told: str, attempted: Callable[[str], tuple[str, str, bytes]]
) -> None:
    """Memory, output, files of others and the network."""
    found, detail, output = attempted(name)
    assert found == problem
    assert told in detail
    assert len(output) <= 1 << 20


def test_a_module_of_the_user_hides_none_of_ours(
    attempted: Callable[[str], tuple[str, str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds hold whatever is on the path of the host."""
    (tmp_path / "confinement.py").write_text("raise SystemExit('that of the user')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert attempted("hoard")[0] == "memory"


def test_keys_of_the_environment_are_not_handed_on(
    attempted: Callable[[str], tuple[str, str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parser sees none."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    problem, _, output = attempted("environ")
    assert not problem
    assert b"SETTINGS" in output
    assert b"sk-secret" not in output


def test_a_document_that_takes_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to do."""
    monkeypatch.setattr(documents, "_DOCUMENT_SECONDS", 1)
    kids = b"4 0 R " * 300_000
    (tmp_path / "million.pdf").write_bytes(
        pdf("a").replace(b"/Kids[4 0 R]/Count 1", b"/Kids[%s]/Count 300000" % kids)
    )
    with pytest.raises(UnreadableDocument, match=r"million.pdf could not be read within \d+ seconds. Split it."):
        Text.open(tmp_path / "million.pdf")
