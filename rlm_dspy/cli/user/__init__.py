"""What the command line keeps for its user: configuration, keys, history, completion."""
