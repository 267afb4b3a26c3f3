"""Ask a question about the articles with the native library, `rlms` (`import rlm`), and sum the run up.

    uv run --extra embedded --extra rlms python experiment/rlm_read_big_article.py "When is Polly to be retired?"

The model is chosen as in `dspy_rlm.py`: `--model`, else `RLM_DSPY_MODEL`, else the one of LM Studio if
`LM_STUDIO_API_BASE` is set, else the small one that runs in this process. The library speaks OpenAI's protocol,
so the model is put behind an address on this machine (`bridge.py`), which also counts what all calls took.

The model's code runs in this process (environment `local`), which protects from nothing: use it with a model and a
text you trust. The library's logger writes every turn to `logs/`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # without network litellm waits for it

import running
import typer
from bridge import Bridge
from summary import Summary

from rlm_dspy import Text
from rlm_dspy.models import choose_model

if TYPE_CHECKING:
    import dspy

ARTICLES = Path(__file__).parent / "articles.md"
QUESTION = "How many conversations did Polly hold in its first month?"
TURNS = 20


def ask(
    lm: dspy.BaseLM, text: str, question: str, *, turns: int, logs: Path
) -> tuple[Summary, list[dict[str, Any]]]:
    """Run the library once.

    Returns:
        The summary, and the library's own log: one dict a turn, with `response` and `code_blocks`.

    Raises:
        ImportError: If `rlms` is not installed; the message names the extra.
    """
    try:
        from rlm import RLM  # noqa: PLC0415  # the extra `rlms`
        from rlm.logger import RLMLogger  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "This example needs the extra `rlms`. "
            "In the checkout: uv sync --extra embedded --extra rlms. With pip: pip install rlms."
        ) from error
    with Bridge(lm) as bridge:
        rlm = RLM(
            backend="openai",
            backend_kwargs={"model_name": lm.model, "base_url": bridge.base_url(), "api_key": bridge.key},
            environment="local",
            max_iterations=turns,
            logger=RLMLogger(log_dir=str(logs)),
        )
        completion = rlm.completion(text, root_prompt=question)
        spent = bridge.usage()
    iterations: list[dict[str, Any]] = completion.metadata["iterations"]
    return summary_of(completion, iterations, spent), iterations


def summary_of(completion: Any, iterations: list[dict[str, Any]], spent: dict[str, Any]) -> Summary:
    """Return what a run came to; tokens and cost are what the model's side counted."""
    submitted = any(
        block["result"].get("final_answer") is not None for turn in iterations for block in turn["code_blocks"]
    )
    failed = [not turn["code_blocks"] or any_error(turn) for turn in iterations[: None if submitted else -1]]
    errors = [call for turn in iterations for call in calls_of(turn) if call.get("error")]
    return Summary(
        answer=str(completion.response),
        stop="submitted" if submitted else "extracted" if completion.response else "unanswered",
        turns=len(failed),
        failed_turns=sum(failed),
        subcalls=spent["calls"] - len(iterations),
        failed_subcalls=len(errors),
        input_tokens=spent["input_tokens"],
        cached_input_tokens=spent["cached_input_tokens"],
        output_tokens=spent["output_tokens"],
        cost=spent["cost"],
        seconds=completion.execution_time,
    )


def any_error(turn: dict[str, Any]) -> bool:
    """Return whether a cell of a turn raised."""
    return any(block["result"].get("stderr") for block in turn["code_blocks"])


def calls_of(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sub-calls of a turn."""
    return [call for block in turn["code_blocks"] for call in block["result"].get("rlm_calls") or ()]


def show_steps(iterations: list[dict[str, Any]]) -> None:
    """Print what was written and what came out, turn by turn."""
    for number, turn in enumerate(iterations, start=1):
        print(f"\n--- turn {number}: {turn.get('iteration_time') or 0.0:.1f} s")
        for block in turn["code_blocks"]:
            for line in block["code"].splitlines():
                print(f">>> {line}")
            print(block["result"].get("stdout", ""), block["result"].get("stderr", ""), sep="")
        if not turn["code_blocks"]:
            print(turn["response"])


def main(
    question: Annotated[str, typer.Argument(help="What to ask.")] = QUESTION,
    file: Annotated[Path, typer.Option(help="A UTF-8 text file.", exists=True, dir_okay=False)] = ARTICLES,
    model: Annotated[str | None, typer.Option(help="As for rlm-dspy ask --model.")] = None,
    turns: Annotated[int, typer.Option(help="Turns at most.")] = TURNS,
    logs: Annotated[Path, typer.Option(help="Where the library's logger writes.")] = Path("logs"),
) -> None:
    """Answer a question about a long text with the native library."""
    text = str(Text.open(file))
    try:
        summary, iterations = ask(choose_model(model), text, question, turns=turns, logs=logs)
    except ImportError as error:
        sys.exit(str(error))
    show_steps(iterations)
    summary.show(text)
    print(f"\nThe log: {logs}")


if __name__ == "__main__":
    running.run(main)
