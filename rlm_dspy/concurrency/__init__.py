"""How the package waits: one loop for sync and async, background loops, time limits."""
