"""Take pictures of the sample run in MLflow's page, in `experiment/screenshots/`.

    uv run --with playwright python experiment/bench/trace_screenshots.py

Plays `sample_run.py` with tracing on, starts MLflow's server on a store of its own, and opens it in Chromium
(`apt-get install chromium`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Set before anything is imported: without network litellm and MLflow wait for it, MLflow for ever.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dspy
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))
from sample_run import ARTICLES, play  # scripts of that folder are run, not installed

from rlm_dspy import RLM, Text, tracing
from rlm_dspy.cli.user.ui import runs_page, server_command, server_environment
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.observe import RunLog
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.testing import Reply

SCREENSHOTS = Path(__file__).parents[1] / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
WIDTH = 1800
LEFT_OF_THE_ASSISTANT = {"x": 0, "y": 0, "width": WIDTH - 470, "height": 900}
STARTS_WITHIN_SECONDS = 240


@contextlib.contextmanager
def serving(store: str) -> Iterator[str]:
    """Serve a store in this scope; give the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(server_command(store, port), env=server_environment(), start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers.

    Raises:
        RuntimeError: If it ends, or does not answer for minutes.
    """
    until = time.monotonic() + STARTS_WITHIN_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(1)
    raise RuntimeError(f"{address} does not answer.")


class Visitor:
    """Looks at MLflow's page, and keeps what there is to see.

    Args:
        page: Of a browser.
        address: Of the server.
        folder: Where pictures are kept, and what can be read on them.
    """

    def __init__(self, page: Any, address: str, folder: Path) -> None:
        self.page = page
        self.address = address
        self.folder = folder

    def open(self, path: str, awaited: str, name: str) -> None:
        """Open a page, wait for a text on it, and keep it."""
        self.page.goto(f"{self.address}/#/experiments/{path}")
        self.page.get_by_text(awaited).first.wait_for()
        self._clear()
        self.keep(name)

    def open_span(self, span: str, awaited: str, name: str) -> None:
        """Open a span of the trace that is shown, and keep what it shows."""
        self.page.get_by_text(span, exact=True).first.evaluate("element => element.click()")
        self.page.get_by_text(awaited).first.wait_for()
        self.keep(name)

    def keep(self, name: str) -> None:
        """Keep the page, frames in it too, as a picture and as text."""
        self.page.wait_for_timeout(1_500)
        folders = [self.page.get_by_text(text) for text in ("Path: /", 'File "/')]  # of this machine
        self.page.screenshot(
            path=self.folder / f"{name}.png", clip=LEFT_OF_THE_ASSISTANT, mask=folders, mask_color="#fff"
        )
        texts = [frame.locator("body").inner_text() for frame in self.page.frames]
        (self.folder / f"{name}.txt").write_text("\n".join(texts), encoding="utf-8")

    def _clear(self) -> None:
        """Close the hint that lies over the page."""
        self.page.wait_for_timeout(2_000)
        hint = self.page.get_by_role("button", name="Got it")
        if hint.count():
            hint.first.click()
            self.page.wait_for_timeout(1_000)


@contextlib.contextmanager
def page_of(browser: str) -> Iterator[Any]:
    """Give a page of a browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(120_000)
        yield page
        chromium.close()


def log_a_run(store: str) -> tuple[str, str]:
    """Log the sample run; return the ids of its trace and of its run of MLflow."""
    import mlflow

    tracing.autolog(store=store, experiment="articles")
    with tracing.logged_run("trends of 2025"), tracing.tags(session="a morning with the articles", user="ada"):
        play()
        run = mlflow.active_run().info.run_id
    tracing.flush(STARTS_WITHIN_SECONDS)
    return mlflow.get_last_active_trace_id(), run


LOOK = "I look at the beginning.\n```python\nprint(context[:400])\n```"
DRAW = r"""I draw the number of articles of each year.
```python
import os, re
from collections import Counter
from PIL import Image, ImageDraw
years = sorted(Counter(re.findall(r"(?m)^Date: (\d{4})", context)).items())
chart = Image.new("RGB", (320, 160), "white")
for number, (year, count) in enumerate(years):
    ImageDraw.Draw(chart).rectangle([20 + 75 * number, 140 - 10 * count, 70 + 75 * number, 140], "steelblue")
    ImageDraw.Draw(chart).text((30 + 75 * number, 144), year, "black")
os.makedirs("output", exist_ok=True)
chart.save("output/articles_by_year.png")
```"""
ANSWER = "```python\nSUBMIT(answer=f'Most were published in {max(years, key=lambda pair: pair[1])[0]}.')\n```"


def log_others(released: threading.Event) -> dict[str, str]:
    """Log runs that draw, are interrupted, fail, are refused, go on, are a session's, or wait for their release.

    Returns:
        The id of the trace of each, by the names of `QUESTIONS`; of `session`, its own id.
    """
    import mlflow

    waits = threading.Event()

    def wait(_: object) -> str:
        waits.set()
        released.wait()
        return "```python\nSUBMIT(answer='')\n```"

    def run(how: str, *replies: Reply) -> None:
        rlm = RLM("context, question -> answer", interpreter_factory=lambda: PythonInterpreter(packages=["PIL"]))
        with contextlib.suppress(KeyboardInterrupt, dspy.LMError), dspy.context(lm=ScriptedLM(replies)):
            rlm(context=Text.open(ARTICLES), question=QUESTIONS[how])

    run("picture", DRAW, ANSWER)
    run("interrupted", LOOK, KeyboardInterrupt())
    run("failed", LOOK, dspy.LMServerError("502 Bad Gateway"))
    threading.Thread(target=run, args=("waiting", LOOK, wait)).start()
    waits.wait()
    log_reviewed()
    log_resumed(Path("run.jsonl"))
    session = log_session()
    tracing.flush(STARTS_WITHIN_SECONDS)
    traces = reversed(mlflow.search_traces(return_type="list"))  # the newest of a question counts
    found = {trace.info.request_preview: trace.info.trace_id for trace in traces}
    return {how: found[question] for how, question in QUESTIONS.items()} | {"session": session}


def log_reviewed() -> None:
    """Log a run whose code, tool call and answer are refused once each."""

    def fetch(url: str) -> str:
        """Return a page."""
        return f"the page {url}"

    rlm = RLM(
        "context, question -> answer",
        tools=[fetch],
        on_code=lambda code: "Print less than all of it." if "print(context)" in code else None,
        on_tool=lambda _, call: None if "example.org" in str(call) else "Only pages of example.org may be read.",
        on_submit=lambda fields: None if "example.org" in fields["answer"] else "Name the page.",
    )
    code = (
        "print(context)",
        "print(fetch('https://example.org'))\nprint(fetch('https://example.com'))",
        "SUBMIT(answer='It is there.')",
        "SUBMIT(answer='It is at example.org.')",
    )
    with dspy.context(lm=ScriptedLM([f"```python\n{each}\n```" for each in code])):
        rlm(context=Text.open(ARTICLES), question=QUESTIONS["reviewed"])


def log_resumed(log: Path) -> None:
    """Log a run that fails in its third turn, and goes on."""
    rlm, inputs = RLM("context, question -> answer"), {"question": QUESTIONS["resumed"]}
    count = "```python\nn = context.count('agent')\nprint(n)\n```"
    failing = ScriptedLM([LOOK, count, dspy.LMServerError("502 Bad Gateway")])
    with contextlib.suppress(dspy.LMError), RunLog(log), dspy.context(lm=failing):
        rlm(context=Text.open(ARTICLES), **inputs)
    with dspy.context(lm=ScriptedLM(["```python\nSUBMIT(answer=f'{n} times.')\n```"])):
        rlm.resume(log, context=Text.open(ARTICLES), **inputs)


def log_session() -> str:
    """Log a session of two calls; return its id."""
    code = (
        "heads = context.split('\\n# ')\nSUBMIT(answer=f'{len(heads)} parts.')",
        "SUBMIT(answer=heads[-1][:40])",
    )
    replies = ScriptedLM([f"```python\n{each}\n```" for each in code])
    with (
        dspy.context(lm=replies),
        RLM("context, question -> answer").session(context=Text.open(ARTICLES)) as session,
    ):
        session(question="How many parts are there?")
        session(question=QUESTIONS["session"])
    return session.id


QUESTIONS = {
    "reviewed": "Which page may be read?",
    "resumed": "How often does the word agent occur?",
    "session": "How does the last one begin?",
    "picture": "In which year were most articles published?",
    "interrupted": "Which article is the longest?",
    "failed": "Who wrote most of the articles?",
    "waiting": "Which article is the shortest?",
}


def look_at_others(visitor: Visitor, traces: dict[str, str]) -> None:
    """Look at the list again, and at the runs that draw, are cut, or go on."""
    page = runs_page(visitor.address).partition("#/experiments/")[2]
    visitor.open(page, QUESTIONS["waiting"], "trace-states")
    visitor.open(f"1/traces/{traces['picture']}", "output/articles_by_year.png", "trace-picture")
    visitor.open(f"1/traces/{traces['interrupted']}", "turn 2: interrupted", "trace-interrupted")
    visitor.open(f"1/traces/{traces['failed']}", "turn 2: failed", "trace-failed")
    visitor.open(f"1/traces/{traces['waiting']}", "turn 1", "trace-in-progress")
    visitor.open(f"1/traces/{traces['reviewed']}", "on_tool: refused", "trace-reviewed")
    visitor.open(f"1/traces/{traces['resumed']}", "RLM: resumed", "trace-resumed")
    visitor.open(f"1/chat-sessions/{traces['session']}", QUESTIONS["session"], "trace-session")


def look(visitor: Visitor, trace: str, run: str) -> None:
    """Look at the list, at the trace and some of its spans, and at the report."""
    visitor.open("1/traces", "Which trend", "trace-list")
    visitor.open(f"1/traces/{trace}", "turn 2: error", "trace")
    visitor.open_span("turn 2: error", "no such group", "trace-error")
    visitor.open_span("turn 4", "Which trend does this article describe?", "trace-turn")
    visitor.open_span("llm_query ×11", "429 Too Many Requests", "trace-batch")
    visitor.open_span("rlm_query", "Quote the sentence", "trace-child")
    visitor.open_span("turn 6: SUBMIT refused", "SUBMIT was refused", "trace-refused")
    visitor.open(f"1/runs/{run}/artifacts/{trace}/report.html", "report.html", "trace-report")


def main(
    browser: Annotated[str, typer.Option(help="Where Chromium is.")] = "/usr/bin/chromium",
    folder: Annotated[
        Path, typer.Option(help="Where to keep pictures, and what can be read on them.")
    ] = SCREENSHOTS,
) -> None:
    """Take the pictures."""
    folder = folder.resolve()
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        store = f"sqlite:///{home}/mlflow.db"
        trace, run = log_a_run(store)
        released = threading.Event()
        try:
            others = log_others(released)
            with serving(store) as address, page_of(browser) as page:
                look(visitor := Visitor(page, address, folder), trace, run)
                look_at_others(visitor, others)
        finally:
            released.set()
            tracing.flush()


if __name__ == "__main__":
    typer.run(main)
