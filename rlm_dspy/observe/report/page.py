"""A run as one HTML file that a person can read: opened from a disk, without a network and without scripts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rlm_dspy.files import write_whole
from rlm_dspy.observe.formatting import all_calls, price, seconds, share, tokens
from rlm_dspy.observe.report.charts import plots, timeline
from rlm_dspy.observe.report.coverage_section import coverage, lineage
from rlm_dspy.observe.report.html import Html, joined, tag
from rlm_dspy.observe.report.style import style
from rlm_dspy.observe.report.turns_section import turns
from rlm_dspy.text import clip, counted

if TYPE_CHECKING:
    import os

    from rlm_dspy.observe.record import Record
    from rlm_dspy.usage import Usage

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_SHOWN_CHARS = 4_000
_TITLE_CHARS = 200
_STOPS = {
    "submitted": ("good", "submitted"),
    "extracted": ("warn", "read from the steps"),
    "unanswered": ("bad", "no answer"),
    "interrupted": ("bad", "interrupted"),
    "failed": ("bad", "failed"),
    "killed": ("bad", "killed"),
}


def write_report(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a run as an HTML file, whole or not at all.

    Args:
        record: The run.
        path: Of the file; one that is there is replaced.
    """
    write_whole(report_html(record), path)


def report_html(record: Record) -> str:
    """Return a run as an HTML page that holds all it needs: no script, nothing fetched, all content escaped."""
    sections = [
        _header(record),
        _totals(record),
        _task(record),
        _section("The run over time", timeline(record)) if record.trajectory else None,
        _section("Tokens and cost, turn by turn", plots(record.trajectory)) if record.trajectory else None,
        _section("What of the input was looked at", coverage(record)),
        _section("Where the answer stands in the input", lineage(record)) if record.occurrences else None,
        _section("Turn by turn", turns(record.trajectory, record.input_chars)),
    ]
    return page(f"{_headline(record)[:_TITLE_CHARS]} - rlm-dspy", *sections)


def page(title: str, *children: Html | None) -> str:
    """Return an HTML document in the style of reports, in which nothing can run and nothing is fetched."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(style())),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *children), lang='en')}\n"


def stop_badge(record: Record) -> Html:
    """Return why a run ended, as a coloured word."""
    class_, words = _STOPS[record.stop]
    return tag("span", words, class_=f"badge {class_}")


def why(record: Record) -> str:
    """Return in a sentence or two why a run ended."""
    number = len(record.trajectory)
    sentence = {
        "submitted": f"The model called SUBMIT in turn {number}, and what it gave fits the signature.",
        "extracted": f"No SUBMIT in {counted(number, 'turn')}; a last model call read the answer from the steps.",
        "unanswered": f"No SUBMIT in {counted(number, 'turn')}, and no answer could be read from the steps.",
        "interrupted": f"Somebody interrupted it after {counted(number, 'turn')}.",
        "failed": f"It ended with an error after {counted(number, 'turn')}: {record.error}",
        "killed": f"Its process was gone in turn {number}; this is what the log of it holds.",
    }[record.stop]
    limit = record.usage.limit
    return f"{sentence} The limit {limit} was reached, which made it end early." if limit else sentence


def answer(record: Record) -> Html:
    """Return the output fields, each with its type."""
    types = dict(field.partition(": ")[::2] for field in _fields(record.signature.partition(" -> ")[2]))
    if not record.outputs:
        return tag("p", "There is no answer.", class_="value")
    labels = {name: f"{name}: {types[name]}" if types.get(name) else name for name in record.outputs}
    return joined(
        part
        for name, value in record.outputs.items()
        for part in (tag("p", labels[name], class_="label"), tag("p", _value(value), class_="value"))
    )


def _header(record: Record) -> Html:
    about = ["rlm-dspy run", record.model]
    about += [f"sub-calls {record.sub_model}"] if record.sub_model else []
    about += [f"{record.started_at:%Y-%m-%d %H:%M} UTC"] if record.started_at else []
    return tag(
        "header",
        tag("small", " · ".join(about)),
        tag("h1", clip(_headline(record), _TITLE_CHARS * 3)),
        tag(
            "div",
            answer(record),
            stop_badge(record),
            " ",
            tag("small", why(record)),
            class_=f"answer {_STOPS[record.stop][0]}",
        ),
    )


def _headline(record: Record) -> str:
    """Return the question: the input of that name, else the task, else the signature."""
    return record.inputs.get("question") or record.inputs.get("query") or record.instructions or record.signature


def _totals(record: Record) -> Html:
    usage, calls = record.usage, list(all_calls(record.trajectory))
    failed, cached = sum(bool(call.error) for call in calls), sum(call.cached for call in calls)
    of_calls = ", ".join(f"{n:,} {what}" for n, what in ((failed, "failed"), (cached, "answered before")) if n)
    errors = sum(step.kind not in {"output", "submitted"} for step in record.trajectory)
    into = usage.input_tokens
    hits = usage.cached_input_tokens / into if into else 0
    tiles = [
        ("turns", f"{len(record.trajectory):,}", f"{errors:,} went wrong" if errors else ""),
        ("sub-calls", f"{len(calls):,}", of_calls),
        ("tokens in", f"{into:,}", f"{share(hits)} cached by the provider" if hits else ""),
        ("tokens out", f"{usage.output_tokens:,}", ""),
        ("cost", price(usage.cost), f"{usage.calls:,} model calls"),
        ("time", seconds(usage.seconds), ""),
        *([("limit reached", usage.limit, "")] if usage.limit else []),
    ]
    return tag(
        "div",
        *(
            tag("div", tag("span", name, class_="label"), tag("b", value), tag("small", note), class_="tile")
            for name, value, note in tiles
        ),
        class_="tiles",
    )


def _task(record: Record) -> Html:
    """Return what was asked in full and who spent what, closed."""
    inputs = (
        tag("tr", tag("th", name), tag("td", tag("code", clip(value, _SHOWN_CHARS))))
        for name, value in record.inputs.items()
    )
    asked = [
        tag("p", "signature", class_="label"),
        tag("pre", record.signature),
        tag("p", "instructions", class_="label") if record.instructions else None,
        tag("pre", record.instructions) if record.instructions else None,
        tag("p", "inputs", class_="label"),
        tag("div", tag("table", *inputs), class_="wide"),
        tag("p", "the model's last words", class_="label") if record.final_reasoning else None,
        tag("pre", record.final_reasoning) if record.final_reasoning else None,
    ]
    spent = [
        _table(words, usages)
        for words, usages in (("who asked", record.usage.by_role), ("who answered", record.usage.by_model))
        if usages
    ]
    return joined(
        [
            tag("details", tag("summary", "The task in full"), *asked),
            tag("details", tag("summary", "Who used what"), *spent) if spent else None,
        ]
    )


def _table(words: str, spent: dict[str, Usage]) -> Html:
    head = tag("tr", *(tag("th", name) for name in (words, "calls", "failed", "tokens", "cost")))
    rows = (
        tag(
            "tr",
            tag("td", name),
            tag("td", f"{of.calls:,}", class_="n"),
            tag("td", f"{of.failures:,}", class_="n"),
            tag("td", tokens(of)),
            tag("td", price(of.cost), class_="n"),
        )
        for name, of in spent.items()
    )
    return tag("div", tag("table", head, *rows), class_="wide")


def _section(title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def _fields(written: str) -> list[str]:
    """Return the fields of one side of a signature; commas inside brackets part none."""
    fields, depth = [""], 0
    for char in written:
        depth += (char in "[(") - (char in "])")
        if char == "," and not depth:
            fields.append("")
        else:
            fields[-1] += char
    return [field.strip() for field in fields]
