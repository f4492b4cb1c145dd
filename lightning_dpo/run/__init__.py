"""A run and its folder: identity, checkpoints, resume, signals, terminal output."""
