"""The host's side of a confined worker: its process, its session, the values and calls that cross."""
