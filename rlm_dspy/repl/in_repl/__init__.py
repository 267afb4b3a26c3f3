"""Source that runs inside a REPL; not imported by the host."""
