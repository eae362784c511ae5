"""The version, as the package's metadata, the command and generated files have it."""

__version__ = "0.1.0"
