"""The `rlm-dspy` command line: one module for each command or group of commands."""

import sys

_INTERRUPTED = 130
"""The value of `errors.INTERRUPTED`, which is not imported yet."""


def main() -> None:
    """Run the command line of this process. A Ctrl-C while it is imported ends it quietly."""
    try:
        from rlm_dspy.cli.app import main as run_command
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    run_command()


__all__ = ["main"]
