"""Ask one question about a text that is longer than many models' windows.

    uv run python experiment/dspy_rlm_simple.py

The model is `RLM_DSPY_MODEL`, else the one of LM Studio if `LM_STUDIO_API_BASE` and `LM_STUDIO_API_KEY` are set,
else the small one that runs in this process.
"""

import os
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the network is asked for prices

import dspy

from rlm_dspy import RLM, Text
from rlm_dspy.models import choose_model, limits_for

ARTICLES = Path(__file__).parent / "articles.md"


def main() -> None:
    lm = choose_model()
    dspy.configure(lm=lm)
    rlm = RLM("context, question -> answer: str", limits=limits_for(lm))
    result = rlm(context=Text.open(ARTICLES), question="How many conversations did Polly hold in its first month?")
    print(f"{result.answer}\n({result.stop} after {len(result.trajectory)} turns)")


if __name__ == "__main__":
    main()
