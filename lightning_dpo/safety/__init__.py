"""What a stranger's configuration may not do: skip this room on a first reading. docs/design/safety.md says why."""
