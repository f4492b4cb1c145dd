"""From conf/ and the command line to a checked configuration, and from that to the parts of a run."""
