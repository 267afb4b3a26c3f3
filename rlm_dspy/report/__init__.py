"""What there is of a run when it has ended: its record, its page, and how a notebook shows it."""
