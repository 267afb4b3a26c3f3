"""`python -m rlm_dspy`: the command line where its script is not on the path."""

from rlm_dspy.cli import main

if __name__ == "__main__":
    main()
