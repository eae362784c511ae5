"""Derivative rules: one file per operation or family of operations. Nothing else knows an operation by name."""
