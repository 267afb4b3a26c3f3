"""What models, data and other people's files wrote drives no terminal, and reads as it looks."""

from __future__ import annotations

import io
import logging
import unicodedata
from typing import TYPE_CHECKING

import pytest
import typer

from rlm_dspy.cli import errors as exits
from rlm_dspy.observe.console import Lines
from rlm_dspy.redaction import hidden
from rlm_dspy.report.record import Record
from rlm_dspy.report.write_report import report_html
from rlm_dspy.text import (
    beginning,
    counted,
    logger,
    one_line,
    price,
    printable,
    seconds,
    share,
    with_note,
    write_whole,
)

if TYPE_CHECKING:
    from pathlib import Path

BIDI = {
    "\u061c",
    *(chr(code) for code in (*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x2070))),
}
HOSTILE = "pay \u202e001\u202c \u2066x\u2069 \x1b]0;title\x07 \x9b2J \U000e0041"


def is_safe(text: str) -> bool:
    """Whether no character is left that turns the direction round or that a terminal acts on."""
    kept = {char for char in text if unicodedata.category(char) in ("Cc", "Zl", "Zp")} - {"\n", "\t", "\r"}
    turning = {char for char in text if unicodedata.bidirectional(char) in BIDI_CLASSES}
    return not kept and not turning and not BIDI & set(text)


BIDI_CLASSES = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_every_character_that_a_terminal_acts_on_is_replaced() -> None:
    """Of all there are; joiners of scripts and emoji stay."""
    assert is_safe(printable("".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))))
    for kept in (
        "\t\n",
        "na\xefve",
        "\u05e9\u05dc\u05d5\u05dd",
        "\U0001f469\u200d\U0001f680",
        "\u0915\u094d\u200d\u0937",
    ):
        assert printable(kept) == kept


def test_a_line_on_standard_error_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    """Also that of an error, and its traceback."""
    exits.tell(HOSTILE)
    with pytest.raises(typer.Exit), exits.errors_as_lines(debug=True):
        raise ValueError(HOSTILE)
    told = capsys.readouterr().err
    assert told.count("pay") >= 3
    assert is_safe(told)


def test_a_message_of_bad_usage_is_safe() -> None:
    """It may quote a file."""
    with pytest.raises(typer.BadParameter) as caught, exits.errors_as_lines(debug=False):
        raise typer.BadParameter(HOSTILE)
    assert is_safe(caught.value.message)


def test_a_view_of_a_run_and_a_page_are_safe() -> None:
    """Wherever a question, a model or a document is quoted."""
    file = io.StringIO()
    view = Lines(file)
    view.head(HOSTILE, HOSTILE)
    view.end(HOSTILE, answered=True)
    assert file.getvalue().count("pay") == 3
    assert is_safe(file.getvalue())
    page = report_html(Record(signature=HOSTILE, inputs={HOSTILE: HOSTILE}, model=HOSTILE, stop="failed"))
    assert page.count("pay") >= 5
    assert is_safe(page)


def test_what_is_logged_is_safe(caplog: pytest.LogCaptureFixture) -> None:
    """Of verbose runs the model's own words."""
    for name in ("dspy.rlm_dspy", "dspy.rlm_dspy.tracing"):
        with caplog.at_level(logging.INFO, name):
            logger(name).info("%s and %s", HOSTILE, HOSTILE)
    logging.getLogger("dspy.rlm_dspy").warning("RLM: %s", HOSTILE)
    assert len(caplog.messages) >= 1
    assert all(map(is_safe, caplog.messages))


# Numbers and lines


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (seconds(0.04), "0.0 s"),
        (seconds(9.94), "9.9 s"),
        (seconds(59.4), "59 s"),
        (seconds(59.6), "1 min 0 s"),
        (seconds(3599.4), "59 min 59 s"),
        (seconds(7500), "2 h 5 min"),
        (price(None), "unknown"),
        (price(0.0), "$0.00"),
        (price(0.00123), "$0.00123"),
        (price(0.000001), "< $0.00001"),
        (price(12.345), "$12.35"),
        (share(0.0), "0 %"),
        (share(0.0004), "< 0.1 %"),
        (share(0.0123), "1.2 %"),
        (share(0.5), "50 %"),
        (share(0.999), "99.9 %"),
        (share(0.9996), "> 99.9 %"),
        (share(1.0), "100 %"),
        (counted(1, "turn"), "1 turn"),
        (counted(1200, "turn"), "1,200 turns"),
        (beginning("abcdef", 6), "abcdef"),
        (beginning("abcdef", 3), "abc..."),
        (one_line(" a \n b\tc ", 9), "a b c"),
        (one_line("a\nb" * 99, 5), "a ba ..."),
    ],
)
def test_numbers_and_lines_are_told_as_people_read_them(written: str, told: str) -> None:
    assert written == told


def test_the_ends_of_a_secret_are_hidden_around_the_note_of_a_cut() -> None:
    """Whatever the note says between its dots."""
    text = with_note("key: planted-secr", 12_345, "cret-value end")
    assert hidden(text, {"planted-secret-value"}) == with_note("key: ***", 12_345, "*** end")


def test_a_missing_folder_is_named_and_not_the_file_beside(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no such folder: '.*missing'$"):
        write_whole("x", tmp_path / "missing" / "r.html")
