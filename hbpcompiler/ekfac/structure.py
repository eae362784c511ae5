"""What block each parameter gets: Kronecker eigenvectors, the whole block, or a diagonal."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import NamedTuple

from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.plan.tied import layout_of
from hbpcompiler.compiler.routes import Site
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.errors import OptionError, listing


class Structure(NamedTuple):
    """The parameters by what their blocks are made of, in the model's order."""

    factors: tuple[str, ...]
    """Of Kronecker factors, or of a whole block where they meet no input features."""
    diagonal: tuple[str, ...]


def structure_of(gradient: Compiled, batch: tuple[object, ...], parameters: Sequence[str], diagonal: Sequence[str],
                 largest_factor: int) -> Structure:
    """By a program for the gradient, which says how each parameter is met.

    A diagonal is for parameters that fit `diagonal`, that would have a factor of more than `largest_factor` rows, and
    whose uses differ (an embedding that is the last layer's weight too), so that they have no common factors. Raises
    OptionError for patterns that fit no parameter.
    """
    _, built = gradient._program(check_batch(gradient.model, batch))
    sites: dict[str, list[Site]] = {}
    for step in built.draft.plan.closings():
        sites.setdefault(step.parameter.key, []).append(step.site)
    names = [name for name, _ in gradient.model.named_parameters() if name in sites]
    _check(parameters, diagonal, names)
    chosen = [name for name in names if _fits(name, parameters)]
    rest = [name for name in chosen if _fits(name, diagonal) or largest(sites[name]) > largest_factor
            or len({layout_of(site) for site in sites[name]}) > 1]
    return Structure(tuple(name for name in chosen if name not in rest), tuple(rest))


def largest(sites: Sequence[Site]) -> int:
    """Rows of the larger factor, or of the whole block."""
    found = []
    for site in sites:
        found += [site.size(site.outer), site.size(site.features)] if site.features else [site.size(site.theta)]
    return max(found)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check(parameters: Sequence[str], diagonal: Sequence[str], names: Sequence[str]) -> None:
    idle = [f"{label}: {pattern!r}" for label, patterns in (("parameters", parameters), ("diagonal", diagonal))
            for pattern in patterns if not any(_fits(name, [pattern]) for name in names)]
    if idle:
        raise OptionError(listing("these fit no trainable parameter that reaches the loss:", idle,
                                  f"There are {', '.join(names)}."))
