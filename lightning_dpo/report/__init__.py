"""A page about the runs below a folder, a table of them, the plots as files."""
