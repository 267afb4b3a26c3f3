"""Runs the sub-calls of code in the REPL: lookup, validation, batches, child RLMs."""
