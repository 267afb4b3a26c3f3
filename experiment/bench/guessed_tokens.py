"""What guessing repeated tokens saves where a small model writes code as in its demos: the same reply, sooner?

    uv run --extra embedded python experiment/bench/guessed_tokens.py --model qwen2.5-coder-1.5b

A first turn with the shipped policy, cut to two demos, is asked for three questions on `articles.md`: without
guesses, as the package does it, and with other numbers. The first question reads the prompt, which is not counted.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy
import typer
import xllamacpp

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.embedded.llama_server import Settings
from rlm_dspy.testing import ScriptedLM

HERE = Path(__file__).parent
QUESTIONS = (
    "Who is the chief risk officer of Brightwater Logistics?",
    "Which company makes Scribner?",
    "On what date did version 1.0 of Trellis come out?",
)
POLICY = HERE.parents[1] / "signatures" / "policies" / "small-models.json"
DEMOS = 2
KINDS = ((0, 0), (8, 32), (8, 16), (8, 96), (12, 48))
"""Tokens that must be repeated, and tokens that are guessed then; the second is the package's."""


def messages(question: str) -> list[dict[str, Any]]:
    """Return the messages of a first turn with two demos."""
    lm = ScriptedLM(act=["```python\nSUBMIT(answer='none')\n```"])
    text = Text((HERE.parent / "articles.md").read_text(encoding="utf-8"))
    with dspy.context(lm=lm):
        rlm = RLM("context, question -> answer: str", policy=POLICY, limits=Limits(max_iters=4))
        rlm(context=text, question=question)
    system, *shown, task = (dict(message) for message in lm.script.calls[0])
    ends = [at for at, each in enumerate(shown, 1) if "SUBMIT(" in each["content"] and each["role"] == "assistant"]
    return [system, *shown[: ends[DEMOS - 1]], task]


def server(path: Path, threads: int, repeated: int, guessed: int) -> Any:
    """Start llama.cpp's server."""
    params = xllamacpp.CommonParams()
    params.verbosity, params.model.path, params.cpuparams.n_threads = 0, str(path), threads
    params.hostnames, params.port, params.n_parallel = ["127.0.0.1"], 0, 1
    params.n_ctx, params.n_batch, params.n_ubatch = 8_192, 256, 256
    if guessed:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        params.speculative.ngram_simple.size_n = repeated
        params.speculative.ngram_simple.size_m = guessed
    return xllamacpp.Server(params)


def main(
    model: Annotated[str, typer.Option(help="A name of the catalogue, or a file.")] = "qwen2.5-coder-1.5b",
    threads: Annotated[int, typer.Option(help="Threads that compute.")] = 1,
) -> None:
    """Print a table."""
    asked = [messages(question) for question in QUESTIONS]
    print("| repeated | guessed | written, tokens | seconds | guesses accepted | the same replies |")
    print("|---|---|---|---|---|---|")
    plain: list[str] = []
    for repeated, guessed in KINDS:
        llama = server(Settings(model).file(), threads, repeated, guessed)
        replies = []
        for each in asked:
            body = {"messages": each, "temperature": 0, "max_tokens": 400, "cache_prompt": True}
            told = llama.handle_chat_completions(body)
            replies.append(json.loads(told) if isinstance(told, str | bytes) else told)
        times = [reply["timings"] for reply in replies]
        texts = [reply["choices"][0]["message"]["content"] for reply in replies]
        plain = plain or texts
        drafted = (
            f"{sum(t.get('draft_n_accepted', 0) for t in times)} of {sum(t.get('draft_n', 0) for t in times)}"
        )
        same = sum(text == other for text, other in zip(texts, plain, strict=True))
        seconds = sum(t["predicted_ms"] for t in times) / 1_000
        written = sum(t["predicted_n"] for t in times)
        print(
            f"| {repeated} | {guessed} | {written} | {seconds:.1f} | {drafted} | {same} of {len(texts)} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
