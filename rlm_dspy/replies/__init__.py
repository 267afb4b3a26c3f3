"""Reading what a model wrote: its thinking, its code."""
