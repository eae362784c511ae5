"""The version, as the package's metadata, the command and generated files have it; and the versions of torch tried."""

from __future__ import annotations

import warnings

__version__ = "0.1.0"

TRIED_TORCH = ("2.13", "2.14", "2.15")
"""Versions of torch, as far as their second number, on which the tests ran."""


def warn_if_untried(torch_version: str) -> None:
    """One warning for a version of torch on which nobody ran the tests: tracing reads what may change between them."""
    minor = ".".join(torch_version.split("+")[0].split(".")[:2])
    if minor not in TRIED_TORCH:
        warnings.warn(f"hbpcompiler was never tried with torch {torch_version}, only with {', '.join(TRIED_TORCH)}; "
                      "if a model cannot be compiled, try one of these", stacklevel=2)
