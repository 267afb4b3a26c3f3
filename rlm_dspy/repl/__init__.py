"""The REPL of a run: its session, its functions and tools, the types of what is submitted."""
