"""The page of a run: whole, inert, offline, and small however many sub-calls there were."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from rlm_dspy.coverage.tracker import Occurrence
from rlm_dspy.report.record import Record
from rlm_dspy.report.rendering import highlighted
from rlm_dspy.report.write_report import report_html, write_report
from rlm_dspy.trajectory import Step, SubCall, ToolCall
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from pathlib import Path

ATTACK = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload=x() <a href=javascript:x>"
TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "section",
    "article",
    "div",
    "p",
    "span",
    "small",
    "h1",
    "h2",
    "h3",
    "b",
    "a",
    "pre",
    "code",
    "mark",
    "details",
    "summary",
    "table",
    "tr",
    "td",
    "th",
    "ul",
    "ol",
    "li",
    "svg",
    "rect",
    "path",
    "ins",
    "del",
}
"""Every element that a page consists of. An SVG's own titles are `title` too."""


class Page(HTMLParser):
    """Reads a page as a browser does: its elements, their attributes, and the text between."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]


def spent(tokens: int, cost: float | None = 0.001) -> Usage:
    return Usage(calls=1, input_tokens=tokens, cached_input_tokens=tokens // 2, output_tokens=10, cost=cost)


def call(number: int, **fields: Any) -> SubCall:
    given_ = {
        "name": "query",
        "kind": "query",
        "inputs": {"prompt": f"prompt {number}"},
        "output": f"reply {number}",
        "started": 1.0,
        "seconds": 0.5,
        "spent": spent(100),
    }
    return SubCall.model_validate(given_ | fields)


def record(**fields: Any) -> Record:
    given_ = {
        "signature": "context: str, question: str -> answer: str, names: dict[str, list[int]]",
        "instructions": "Answer the question.",
        "output_types": {"answer": "str", "names": "dict[str, list[int]]"},
        "inputs": {"context": "Text(1,000 characters)", "question": "Who rang the bell?"},
        "model": "scripted/lm",
        "outputs": {"answer": "Ada", "names": {"Ada": [1]}},
        "stop": "submitted",
        "usage": {
            **dict(spent(300)),
            "seconds": 3.0,
            "by_role": {"act": spent(200)},
            "by_model": {"scripted/lm": spent(300)},
        },
        "trajectory": [
            Step(reasoning="I look.", code="print(context[:10])", output="a bell", seconds=1, spent=spent(100)),
            Step(
                reasoning="Done.",
                code="SUBMIT(answer='Ada')",
                kind="submitted",
                started=1,
                seconds=2,
                spent=spent(200),
            ),
        ],
    }
    return Record.model_validate(given_ | fields)


# What is on the page


def test_a_page_tells_what_was_asked_answered_and_used() -> None:
    text = Page(report_html(record())).text
    for told in (
        *("Who rang the bell?", "Ada", "answer: str", "names: dict[str, list[int]]"),
        *(
            "Submitted after 2 turns.",
            "300",
            "$0.00100",
            "3.0 s",
            "I look.",
            "print(context[:10])",
            "a bell",
        ),
    ):
        assert told in text


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stop": "extracted"}, "No SUBMIT in 2 turns, read from the trajectory."),
        ({"stop": "unanswered", "outputs": {}}, "No answer."),
        ({"stop": "interrupted", "outputs": {}}, "Interrupted after 2 turns."),
        ({"stop": "failed", "error": "The key is wrong.", "trajectory": []}, "after 0 turns: The key is wrong."),
        ({"usage": {"limit": "max_cost"}}, "The limit max_cost was reached"),
    ],
)
def test_a_page_says_why_the_run_ended(fields: dict[str, Any], told: str) -> None:
    assert told in Page(report_html(record(**fields))).text


def test_an_old_record_without_times_usage_and_coverage_has_a_page() -> None:
    old = Record(signature="a -> b", inputs={}, model="m", stop="submitted", trajectory=[Step(code="x")])
    text = Page(report_html(old)).text
    assert "Coverage was not recorded in this run." in text
    assert "unknown" in text


def test_turns_that_a_cache_answered_used_no_tokens_at_most() -> None:
    steps = [Step(reasoning="", code="1", output="1", kind="output", spent=spent(0, None))]
    page = report_html(record(trajectory=steps))
    assert "0 in all, at most 0 in a turn" in page
    assert "at most 1 in a turn" not in page


def test_the_page_of_a_killed_run_says_why_there_is_no_coverage() -> None:
    """It is written at a run's end."""
    killed = Record(signature="a -> b", inputs={}, model="m", stop="killed", trajectory=[Step(code="x")])
    assert "this run was killed" in Page(report_html(killed)).text


def test_sub_calls_stand_under_their_turn_with_what_went_in_and_came_out() -> None:
    calls = (
        call(1, batch=1),
        call(2, batch=1, output="", error="RateLimitError: slow down"),
        call(3, batch=2, name="claims", kind="sub", cached=True, attempts=1),
        call(4, batch=3, name="dspy.Predict('a -> b')", kind="ad_hoc", attempts=3),
    )
    page = Page(report_html(record(trajectory=[Step(code="go()", calls=calls)])))
    for told in (
        *("2 calls of llm_query at once", "1 failed", "prompt 1", "reply 1", "RateLimitError: slow down"),
        *("claims: prompt 3", "reused", "dspy.Predict('a -> b')", "3 attempts"),
    ):
        assert told in page.text
    assert not any("open" in attributes for name, attributes in page.elements if name == "details")


def test_what_a_model_thought_is_folded_shut_in_turns_of_the_run_and_of_children() -> None:
    inner = Step(thinking="The child wonders.", code="y", output="z")
    child = call(1, name="rlm", kind="child", steps=(inner,))
    step = Step(thinking=f"I wonder. {ATTACK}", reasoning="I know.", code="go()", calls=(child,))
    page = Page(report_html(record(trajectory=[step])))
    assert_inert(report_html(record(trajectory=[step])))
    folded = [attributes for name, attributes in page.elements if attributes.get("class") == "thinking"]
    assert folded == [{"class": "thinking"}] * 2
    assert page.text.index("I wonder.") < page.text.index("I know.", page.text.index("I wonder."))
    assert "The child wonders." in page.text
    assert "thinking" not in [attributes.get("class") for _, attributes in Page(report_html(record())).elements]


def test_calls_of_tools_stand_in_their_turn_with_arguments_and_result() -> None:
    tools = (
        ToolCall(
            name="search", arguments=f"'bell', {ATTACK!r}", result=f"12 hits {ATTACK}", started=1.0, seconds=0.5
        ),
        ToolCall(name="fetch", arguments="7", error_type="TimeoutError"),
    )
    html = report_html(record(trajectory=[Step(code="go()", tool_calls=tools, tool_calls_left_out=40)]))
    assert_inert(html)
    text = Page(html).text
    for told in ("tool calls: 42", "search('bell', ", "12 hits", "fetch(7) → TimeoutError failed", "40 more"):
        assert told in text


def test_a_child_is_shown_with_its_own_turns_inside_the_call() -> None:
    inner = Step(reasoning="The child looks.", code="y", output="z", calls=(call(9),))
    child = call(1, name="rlm", kind="child", stop="submitted", steps=(inner, inner))
    page = Page(report_html(record(trajectory=[Step(code="go()", calls=(child,))])))
    assert "child run: 2 turns, submitted" in page.text
    assert page.text.count("The child looks.") == 2
    assert "prompt 9" in page.text
    assert len(page.ids()) == len(set(page.ids())) == 3


def test_children_of_children_of_any_depth_do_not_break_the_page() -> None:
    steps: tuple[Step, ...] = ()
    for number in range(30):
        steps = (Step(code=f"level{number}", calls=(call(number, kind="child", steps=steps),)),)
    assert "of this child run are in the record only" in Page(report_html(record(trajectory=list(steps)))).text


def test_calls_in_a_loop_are_one_group() -> None:
    calls = tuple(call(n, batch=n) for n in range(1, 101))
    page = Page(report_html(record(trajectory=[Step(code="go()", calls=calls)])))
    assert "100 calls of llm_query one by one" in page.text
    assert "80 more, one line each" in page.text


def test_links_lead_to_turns_that_are_there() -> None:
    page = Page(report_html(record()))
    links = [str(attributes["href"]) for name, attributes in page.elements if name == "a"]
    assert links == ["#turn-1", "#turn-2"]
    assert {link.removeprefix("#") for link in links} <= set(page.ids())


# Coverage


def covered() -> Record:
    place = Occurrence(value="Ada", input="context", start=500, end=503, before="rung by ", after=" at noon")
    steps = [
        Step(
            code="print(context)", read=(("context", 0, 1000),), shown=(("context", 0, 25), ("context", 400, 600))
        ),
        Step(code="ask()", calls=(call(1, sent=(("context", 500, 600),)),)),
    ]
    return record(
        trajectory=steps,
        input_chars={"context": 1000, "question": 18},
        left_out={"table": "a DataFrame without text"},
        occurrences={"answer": [place], "names": []},
    )


def test_coverage_is_told_in_percent_and_drawn_as_strips() -> None:
    page = Page(report_html(covered()))
    assert "read100 %printed22 %sent10 %" in page.text.replace("\n", "")
    assert "table is not covered: a DataFrame without text." in page.text
    drawn = {str(attributes["class"]): attributes["d"] for name, attributes in page.elements if name == "path"}
    assert drawn["read"] == "M0 5H1000v20H0z"
    assert drawn["shown"] == "M0 35H25v20H0zM400 35H600v20H400z"
    assert drawn["sent"] == "M500 65H600v20H500z"


def test_the_place_of_the_answer_is_marked_and_quoted_with_the_turns_that_saw_it() -> None:
    page = Page(report_html(covered()))
    assert "… rung by Ada at noon …" in page.text
    assert "at 500 of context (50 %); printed in turn 1, sent to a sub-call in turn 2" in page.text
    assert "names does not appear verbatim in the inputs." in page.text
    marks = [
        attributes["x"]
        for name, attributes in page.elements
        if attributes.get("class") == "found" and name == "rect"
    ]
    assert marks == ["498.5"]


# Inert


def attacked(text: str) -> Record:
    step = Step(
        reasoning=text,
        code=text,
        output=text,
        notice=text,
        kind="error",
        read=(("context", 0, 5),),
        calls=tuple(
            call(n, batch=1, name=text, inputs={text: text}, output=text, error=text if n == 2 else "", stop=text)
            for n in range(1, 30)
        ),
    )
    place = Occurrence(value=text, input=text, start=0, end=1, before=text, after=text)
    return record(
        signature=text,
        instructions=text,
        inputs={text: text, "question": text},
        model=text,
        sub_model=text,
        outputs={text: text, "b": [text]},
        error=text,
        stop="failed",
        final_reasoning=text,
        trajectory=[step],
        input_chars={text: 10},
        left_out={text: text},
        occurrences={text: [place]},
        usage={**dict(spent(3)), "limit": text, "by_role": {text: spent(1)}},
    )


def assert_inert(html: str) -> None:
    for name, attributes in Page(html).elements:
        assert name in TAGS
        assert not any(key.startswith("on") or key in {"src", "srcset", "srcdoc", "action"} for key in attributes)
        assert str(attributes.get("href", "#")).startswith("#")


@pytest.mark.parametrize("text", [ATTACK, "]]>--><!--", "&lt;&#60;", "\x00\x1b[31m\ud800\r\n", "\u202eevil"])
def test_no_content_can_add_an_element_or_a_script(text: str) -> None:
    html = report_html(attacked(text))
    assert_inert(html)
    html.encode("utf-8")
    assert "\x00" not in html


@given(st.text(max_size=60))
@settings(max_examples=25, deadline=None)
def test_any_text_whatever_is_inert(text: str) -> None:
    assert_inert(report_html(attacked(text)))


def test_what_an_attack_said_can_still_be_read() -> None:
    assert Page(report_html(attacked(ATTACK))).text.count("<script>alert(1)</script>") > 10


def test_a_page_forbids_scripts_and_fetches_nothing() -> None:
    html = report_html(covered())
    (policy,) = [
        a["content"] for name, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert (
        policy
        == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"https?://|//[a-z]|@import|url\(", html)
    assert "<script" not in html


@pytest.mark.parametrize("code", ["x = '<b>'", "'<b>'\n" * 4_000], ids=["highlighted", "too long to be"])
def test_highlighted_code_is_escaped(code: str) -> None:
    assert isinstance(highlighted(code), Markup)
    assert "<b>" not in highlighted(code)


def test_highlighted_code_has_no_element_over_two_lines() -> None:
    for line in highlighted('x = """one\ntwo\nthree"""\ny = 1').split("\n"):
        assert line.count("<span") == line.count("</span")


# Size, and the file


def test_two_thousand_sub_calls_stay_small_and_none_that_failed_is_missing() -> None:
    long = {"prompt": "word " * 400}
    calls = tuple(
        call(n, batch=1, inputs=long, output="word " * 200, error=f"failure {n}" if n % 100 == 7 else "")
        for n in range(2_000)
    )
    html = report_html(record(trajectory=[Step(code="go()", calls=calls)]))
    assert len(html) < 2_000_000
    assert all(f"failure {n}" in html for n in range(7, 2_000, 100))
    assert "1,980 more, one line each" in html


def test_a_run_of_twenty_turns_is_below_half_a_megabyte() -> None:
    steps = [
        Step(code="for i in range(10):\n    print(i)\n" * 20, output="line of output\n" * 600, seconds=1.0)
    ] * 20
    assert len(report_html(record(trajectory=steps))) < 500_000


def test_a_report_replaces_a_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    path.write_text("old", encoding="utf-8")
    write_report(record(), path)
    assert path.read_text(encoding="utf-8") == report_html(record())
    assert list(tmp_path.iterdir()) == [path]
