"""What a stranger's configuration may not do. Skip this on a first reading; docs/design/safety.md gives the reasons."""
