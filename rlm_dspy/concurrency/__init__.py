"""Runs the same code synchronously or asynchronously, with time-outs and cancellation."""
