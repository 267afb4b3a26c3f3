"""Jobs that run in a process of their own, because their input may be hostile."""
