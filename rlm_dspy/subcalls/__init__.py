"""What code in the REPL may call: targets, dispatch, batches, child RLMs, the values that cross."""
