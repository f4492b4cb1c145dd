"""A run is a folder: which run it is, its checkpoints, how signals end it, what it prints."""
