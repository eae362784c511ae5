"""Logs of training runs: append-only JSON lines that are written while a run goes on, and read at any time."""

from hbpcompiler.runs.reading import Run, Scalars, Step, read
from hbpcompiler.runs.writing import FORMAT, VERSION, Log

__all__ = ["FORMAT", "VERSION", "Log", "Run", "Scalars", "Step", "read"]
