"""The documentation: every block of its pages is run, its site is built, and what it quotes exists."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from typer.testing import CliRunner

import rlm_dspy
from rlm_dspy.cli.app import app
from rlm_dspy.replies.code_blocks import tree_of
from tests.provider_server import ProviderServer, Said, chat, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "experiment" / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(
    r"^```(?P<kind>python|bash|text)\n(?P<code>.*?)^```\n"
    r"(?:<!-- model(?P<always> always)?\n(?P<replies>.*?)^-->\n)?",
    re.MULTILINE | re.DOTALL,
)
"""A block, and behind it, unseen by readers, what the model replies in it."""
NOT_RUN = (
    "python3 -m pip install uv && ",  # by `test_readme`
    "uv sync",
    "uv run --extra embedded --group dev pytest",
    "uv run --group docs mkdocs serve",
    "uv run --extra serve rlm-dspy serve",
)
"""Commands that install, serve, or run these tests."""
MESSAGE = re.compile(r"^### `([^`]+)`$", re.MULTILINE)


def written(reply: str) -> str:
    """Return a reply: lines after `>` as they are, others as a block of code."""
    if reply.startswith(">"):
        return "\n".join(line.removeprefix(">").removeprefix(" ") for line in reply.splitlines())
    return f"```python\n{reply.strip()}\n```"


@dataclass
class Model:
    """What the server says next: the replies of a block in their order, or one again and again."""

    replies: list[str] = field(default_factory=list)
    always: str = ""

    def say(self, _: list[str]) -> Said:
        return Said(self.always or self.replies.pop(0))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """Serve a model as OpenAI does, in a folder with the files that the pages name."""
    (tmp_path / "experiment").mkdir()
    for folder in (".", "experiment"):
        shutil.copy(ROOT / "experiment" / "articles.md", tmp_path / folder)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "one.md").write_text("Ovid Systems is in Tallinn.", encoding="utf-8")
    (tmp_path / "corpus" / "two.md").write_text("Castellan Labs is elsewhere.", encoding="utf-8")
    (tmp_path / "sales.csv").write_text("city,amount\nTartu,3\nTallinn,2\n", encoding="utf-8")
    (tmp_path / "program.py").write_text(
        'import rlm_dspy\nprogram = rlm_dspy.RLM("text -> words: int")\n', encoding="utf-8"
    )
    for name, texts in {"train": ("a b", "a b c"), "test": ["a " * words for words in range(3, 43)]}.items():
        lines = [json.dumps({"text": text, "words": len(text.split())}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    model = Model()
    with serving(ProviderServer(model.say, lambda said, body: (200, chat(said, body)))) as server:

        class ServedLM(dspy.LM):
            """OpenAI's models are those of the server; an address in the environment would bring LiteLLM in."""

            def __init__(self, name: str, **settings: Any) -> None:
                super().__init__(name, api_base=f"{server.base}/v1", api_key="none", cache=False, **settings)

        monkeypatch.setattr(dspy, "LM", ServedLM)
        before = {name: dspy.settings.get(name) for name in ("lm", "callbacks", "track_usage")}
        dspy.configure(lm=dspy.LM("openai/gpt-5-mini"))
        try:
            yield model
        finally:
            dspy.configure(**before)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_block_of_a_page_runs(page: Path, model: Model) -> None:
    """In the order of the page, in one namespace; what a block is said to print is what it prints."""
    namespace: dict[str, object] = {"__name__": page.stem}
    sys.modules[page.stem] = ModuleType(page.stem)  # where pydantic looks for types
    printed = io.StringIO()
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["kind"] == "text":
            assert printed.getvalue().strip() == block["code"].strip()
            continue
        replies = [written(reply) for reply in (block["replies"] or "").split("\n===\n") if reply]
        model.replies, model.always = ([], replies[0]) if block["always"] else (replies, "")
        printed = io.StringIO()
        if block["kind"] == "bash":
            for line in block["code"].splitlines():
                run_command(line)
        else:
            with contextlib.redirect_stdout(printed):
                exec(compile(block["code"], page.name, "exec", dont_inherit=True), namespace)
        assert model.replies == []


def run_command(line: str) -> None:
    """Run a line of a block of commands, in this process."""
    arguments = shlex.split(line.removeprefix("uv run "))
    if arguments[0] == "rlm-dspy":
        done = CliRunner().invoke(app, arguments[1:])
        assert done.exit_code == 0, done.output
    elif "python" in arguments:
        assert (ROOT / arguments[arguments.index("python") + 1]).is_file()
    else:
        assert line.startswith((*NOT_RUN, "export "))


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Links, anchors, navigation and docstrings are checked; nothing is loaded from another host."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run([*command, "-f", str(DOCS / "mkdocs.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    assert len(pages) > len(PAGES)
    home = (tmp_path / "docs" / "index.html").read_text(encoding="utf-8")
    assets = re.findall(r'(?:src|href)="(\.\./assets/[^"]+)"', home)
    assert assets
    assert [name for name in assets if not (tmp_path / "docs" / name).is_file()] == []
    loaded = r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//|<link[^>]+href=\"(?:https?:)?//"
    assert [page for page in pages if re.search(loaded, page)] == []
    shown = {name for page in pages for name in re.findall(r' id="(rlm_dspy\.[\w.]+)"', page)}
    assert [names for names in public_names() if not names & shown] == []


def public_names() -> Iterator[set[str]]:
    """Yield, for each public class and function, the name it is imported by and the one where it is defined."""
    for module in [rlm_dspy, *(getattr(rlm_dspy, name) for name in rlm_dspy._PUBLIC - {"limits"})]:
        listed: list[str] | None = getattr(module, "__all__", None)
        for name in listed or [name for name in vars(module) if not name.startswith("_")]:
            value = getattr(module, name)
            defined = getattr(value, "__module__", "")
            if callable(value) and (defined.startswith("rlm_dspy.") if listed else defined == module.__name__):
                yield {f"{module.__name__}.{name}", f"{defined}.{name}"}


def test_llms_txt_names_every_page() -> None:
    """And no page that is not there."""
    pages = re.findall(r"docs/([\w/-]+)\.md$", (DOCS / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    listed = re.findall(r"\]\(docs/([^)]+)\.html\)", (DOCS / "theme" / "llms.txt").read_text(encoding="utf-8"))
    assert listed == pages
    assert sorted(pages) == sorted(str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md"))


def templates() -> str:
    """Return the texts in the code, one a line, with `…` for each value that is put in."""
    found = []
    files = [path for top in ("rlm_dspy", "interpreters") for path in (ROOT / top).rglob("*.py")]
    files.append(Path(str(importlib.import_module("dspy.predict.predict").__file__)))
    for path in files:
        for node in ast.walk(tree_of(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\{\w+\}|%[rsd]", "…", node.value))
    return "\n".join(found)


def test_every_message_that_troubleshooting_quotes_is_in_the_code() -> None:
    """Word for word."""
    code = templates()
    messages = MESSAGE.findall((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(messages) > 30
    assert [message for message in messages if message not in code] == []
