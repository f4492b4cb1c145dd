"""Callbacks of the trainer: saving, warnings, the progress bar."""
