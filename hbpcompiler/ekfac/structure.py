"""What block each parameter gets: Kronecker eigenvectors, the whole block, or a diagonal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.plan.tied import layout_of
from hbpcompiler.compiler.routes import Site
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import OptionError, listing
from hbpcompiler.patterns import fits, fitting


class Met(NamedTuple):
    """How a parameter is met, with all batches that were looked at."""

    rows: int
    """Of the larger factor, or of the whole block."""
    layouts: frozenset[tuple[object, ...]]
    """Different ones have no common factors."""


class Structure(NamedTuple):
    """The parameters by what their blocks are made of, in the model's order."""

    factors: tuple[str, ...]
    """Of Kronecker factors, or of a whole block where they meet no input features."""
    diagonal: tuple[str, ...]


def met_by(gradient: Compiled, batch: Batch) -> dict[str, Met]:
    """The parameters that reach the loss with this batch, by a program for the gradient."""
    _, built = gradient._program(batch)
    sites: dict[str, list[Site]] = {}
    for step in built.draft.plan.closings():
        sites.setdefault(step.parameter.key, []).append(step.site)
    return {name: Met(largest(own), frozenset(map(layout_of, own))) for name, own in sites.items()}


def joined(found: Iterable[Mapping[str, Met]]) -> dict[str, Met]:
    """Those of several batches: a forward may take another way with another batch."""
    whole: dict[str, Met] = {}
    for one in found:
        for name, own in one.items():
            before = whole.get(name, own)
            whole[name] = Met(max(before.rows, own.rows), before.layouts | own.layouts)
    return whole


def structure_of(met: Mapping[str, Met], names: Sequence[str], parameters: Sequence[str], diagonal: Sequence[str],
                 largest_factor: int) -> Structure:
    """Of the parameters `names`, in the model's order, those that were met.

    A diagonal is for parameters that fit `diagonal`, that would have a factor of more than `largest_factor` rows, and
    whose uses differ (an embedding that is the last layer's weight too), so that they have no common factors. Raises
    OptionError for patterns that fit no parameter.
    """
    reached = [name for name in names if name in met]
    _check(parameters, diagonal, reached)
    chosen = [name for name in reached if fits(name, parameters, names)]
    rest = [name for name in chosen if fits(name, diagonal, names) or met[name].rows > largest_factor
            or len(met[name].layouts) > 1]
    return Structure(tuple(name for name in chosen if name not in rest), tuple(rest))


def largest(sites: Sequence[Site]) -> int:
    """Rows of the larger factor, or of the whole block."""
    found = []
    for site in sites:
        found += [site.size(site.outer), site.size(site.features)] if site.features else [site.size(site.theta)]
    return max(found)


def _check(parameters: Sequence[str], diagonal: Sequence[str], names: Sequence[str]) -> None:
    idle = [f"{label}: {pattern!r}" for label, patterns in (("parameters", parameters), ("diagonal", diagonal))
            for pattern in patterns if not fitting(names, pattern)]
    if idle:
        raise OptionError(listing("these fit no trainable parameter that reaches the loss:", idle,
                                  f"There are {', '.join(names)}."))
