"""Names of parameters, or shell patterns of them. A name means the parameter that is called so, whatever a pattern of
the same letters would match: 'layers.[0].weight' may be one."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Collection, Iterable


def fits(name: str, patterns: Iterable[str], names: Collection[str] = ()) -> bool:
    """Whether one of the patterns is for this name, of all these names."""
    return any(name == pattern if pattern in names else fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def fitting(names: Collection[str], pattern: str) -> list[str]:
    """The names that a pattern is for."""
    return [name for name in names if fits(name, [pattern], names)]


def exact(patterns: Iterable[str], names: Collection[str]) -> tuple[str, ...]:
    """The same patterns, with names among them spelled so that they match nothing else."""
    return tuple(glob.escape(pattern) if pattern in names else pattern for pattern in patterns)
