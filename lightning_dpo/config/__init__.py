"""From conf/ and the command line to a checked configuration."""
