"""Benchmarks of hbpcompiler beside its peers: `python -m benchmarks.compare --help`."""
