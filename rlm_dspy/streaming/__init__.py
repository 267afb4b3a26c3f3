"""Streams what the model writes: to `dspy.streamify` and its `StreamListener`s, and to listeners of events."""
