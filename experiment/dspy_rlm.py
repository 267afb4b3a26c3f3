"""Ask a question about the articles, log the run to MLflow, and examine the trajectory.

    uv run python experiment/dspy_rlm.py "How many conversations did Polly hold in its first month?"
    uv run rlm-dspy ui                                                    # then look at it here

The model is `--model`, else `RLM_DSPY_MODEL`, else the one of LM Studio if `LM_STUDIO_API_BASE` and
`LM_STUDIO_API_KEY` are set, else the small one that runs in this process.

The model's code runs in this process (`LocalPythonInterpreter`), which protects from nothing: use it with a model
and a text you trust.
"""

import os
from pathlib import Path
from typing import Annotated, Any

# Set before anything is imported: without network litellm and MLflow wait for it, MLflow for ever.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dspy
import running
import typer
from summary import Summary

from rlm_dspy import RLM, Text, tracing
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.models import choose_model, limits_for

ARTICLES = Path(__file__).parent / "articles.md"
QUESTION = "How many conversations did Polly hold in its first month?"
SIGNATURE = "context, question -> answer: str"
STORE = "sqlite:///mlflow.db"


def log_to_mlflow() -> None:
    """Send every call from here on to MLflow: `MLFLOW_TRACKING_URI`, else a file in the working directory."""
    tracing.autolog(store=os.environ.get("MLFLOW_TRACKING_URI", STORE), experiment="dspy-rlm")


def ask(lm: dspy.BaseLM, text: Text | str, question: str) -> dspy.Prediction:
    """Run the module once."""
    with dspy.context(lm=lm):
        rlm = RLM(SIGNATURE, limits=limits_for(lm), interpreter_factory=LocalPythonInterpreter)
        return rlm(context=text, question=question)


def show_steps(trajectory: list[dict[str, Any]]) -> None:
    """Print what was written and what came out, turn by turn."""
    for number, step in enumerate(trajectory, start=1):
        print(f"\n--- turn {number}: {step['kind']}, {step['seconds']:.1f} s")
        if step["reasoning"]:
            print(step["reasoning"])
        for line in step["code"].splitlines():
            print(f">>> {line}")
        print(step["output"])


def summary_of(result: dspy.Prediction) -> Summary:
    """Return what the run came to and what it took."""
    usage, kinds = result.usage, [step["kind"] for step in result.trajectory]
    subcalls = usage["by_role"].get("query", {"calls": 0, "failures": 0})
    return Summary(
        answer=result.answer,
        stop=result.stop,
        turns=len(kinds),
        failed_turns=len(kinds) - kinds.count("output") - kinds.count("submitted"),
        subcalls=subcalls["calls"],
        failed_subcalls=subcalls["failures"],
        input_tokens=usage["input_tokens"],
        cached_input_tokens=usage["cached_input_tokens"],
        output_tokens=usage["output_tokens"],
        cost=usage["cost"],
        seconds=usage["seconds"],
    )


def main(
    question: Annotated[str, typer.Argument(help="What to ask.")] = QUESTION,
    file: Annotated[Path, typer.Option(help="A UTF-8 text file.", exists=True, dir_okay=False)] = ARTICLES,
    model: Annotated[str | None, typer.Option(help="As for rlm-dspy ask --model.")] = None,
) -> None:
    """Answer a question about a long text, with everything logged."""
    log_to_mlflow()
    text = Text.open(file)
    result = ask(choose_model(model), text, question)
    tracing.flush()
    show_steps(result.trajectory)
    summary_of(result).show(str(text))
    print("\nThe trace: uv run rlm-dspy ui, experiment dspy-rlm")


if __name__ == "__main__":
    running.run(main)
