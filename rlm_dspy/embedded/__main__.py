"""`python -m rlm_dspy.embedded`: serve a local model."""

import typer

from rlm_dspy.embedded.engine import main

if __name__ == "__main__":
    typer.run(main)
