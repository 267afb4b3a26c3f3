"""The RLM loop: rlm.py runs the turns, turn.py takes one, run.py holds the state of a run."""
