"""hbpcompiler."""
