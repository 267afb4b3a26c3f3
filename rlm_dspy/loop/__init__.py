"""The RLM loop: rlm.py runs the turns, turn.py takes one, run_state.py holds the state of a run."""
