"""A page, a table and plots about the runs below a folder."""
