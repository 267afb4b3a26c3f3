"""The same question through `rlm_dspy` and through the native library, and a table of both.

    uv run --extra embedded --extra rlms python experiment/compare.py --model openai/gpt-5-mini

It runs what `dspy_rlm.py` and `rlm_read_big_article.py` run, each once, on the same model, text and turns, and
writes `COMPARISON.md`; with `--docs` the table also goes into `docs/benchmarks.md`. One run says how the libraries
are used, not which answers better: for that there is `bench/accuracy.py`.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dspy_rlm
import marked
import mlflow
import rlm_read_big_article
import running
import typer

from rlm_dspy import Text
from rlm_dspy.models import choose_model, limits_for

if TYPE_CHECKING:
    from summary import Summary

HERE = Path(__file__).parent


def table(ours: Summary, native: Summary, text: str, *, turns: int, logs: Path) -> list[str]:
    """Return the lines of the table: what each library is, then what its run came to."""
    rows = [
        ("Framework", f"DSPy {version('dspy')}", f"rlms {version('rlms')}, its own"),
        ("Signature", f"`{dspy_rlm.SIGNATURE}`, typed", "none: a context and a prompt, a string back"),
        (
            "Interpreter",
            "`LocalPythonInterpreter`; any of DSPy's",
            "environment `local`; docker, modal and others",
        ),
        ("Max iterations", f"`Limits(max_iters={turns})`", f"`max_iterations={turns}`"),
        ("Backend", "any LM of DSPy", "its clients; here `openai`, with the same LM behind `bridge.py`"),
        ("Logging", f"MLflow, `{mlflow.get_tracking_uri().rpartition('/')[2]}`", f"`RLMLogger`, `{logs.name}/`"),
    ]
    for (name, mine), (_, its) in zip(ours.rows(text), native.rows(text), strict=True):
        rows.append((f"run: {name or 'tokens'}", mine, its))
    lines = ["| | rlm_dspy | rlms |", "|---|---|---|"]
    return lines + [f"| {' | '.join(' '.join(word.replace('|', '/').split()) for word in row)} |" for row in rows]


def main(
    question: Annotated[str, typer.Argument(help="What to ask.")] = dspy_rlm.QUESTION,
    file: Annotated[
        Path, typer.Option(help="A UTF-8 text file.", exists=True, dir_okay=False)
    ] = dspy_rlm.ARTICLES,
    model: Annotated[str | None, typer.Option(help="As for rlm-dspy ask --model.")] = None,
    logs: Annotated[Path, typer.Option(help="Where the logger of rlms writes.")] = Path("logs"),
    report: Annotated[Path, typer.Option(help="Where the table goes.")] = HERE / "COMPARISON.md",
    docs: Annotated[bool, typer.Option("--docs", help="Put the table into docs/benchmarks.md too.")] = False,
) -> None:
    """Ask both libraries, and write the table."""
    lm = choose_model(model).copy(cache=False)
    turns = limits_for(lm).max_iters
    text = str(Text.open(file))
    try:
        native, _ = rlm_read_big_article.ask(lm, text, question, turns=turns, logs=logs)
    except ImportError as error:
        sys.exit(str(error))
    dspy_rlm.log_to_mlflow()
    ours = dspy_rlm.summary_of(dspy_rlm.ask(lm, text, question))
    mlflow.flush_trace_async_logging()
    made = table(ours, native, text, turns=turns, logs=logs)
    lines = [
        "# Two libraries, one question",
        "",
        f"Made by `experiment/compare.py` on {time.strftime('%Y-%m-%d')} with {lm.model}: one run each.",
        f'The question: "{question}"',
        "",
        *made,
    ]
    if docs:
        marked.put("two libraries", "\n".join(made) + "\n")
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(report.read_text(encoding="utf-8"))


if __name__ == "__main__":
    running.run(main)
