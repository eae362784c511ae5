"""The `hbp` command."""
