"""Which parameters a quantity is for, and in which groups they are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from hbpcompiler.patterns import exact, fits
from hbpcompiler.quantities.table import QUANTITIES, TABLE, closings_for
from hbpcompiler.quantities.vocabulary import BASES, COLUMN_WEIGHTS, DIRECTIONS, RESIDUAL, RESIDUAL_PARTS, Closing

WITHOUT_VECTORS = tuple(quantity.name for quantity in TABLE
                        if not {DIRECTIONS, COLUMN_WEIGHTS, BASES}.intersection(quantity.arguments))
"""All but those that take vectors or bases, whose shapes depend on the model."""
ALL = "all"
"""The group of all parameters, where no others are given."""


@dataclass(frozen=True)
class Chosen:
    """Which parameters a quantity is for: shell patterns of names, by quantity; those without any are for all."""

    patterns: tuple[tuple[str, tuple[str, ...]], ...] = ()
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ((ALL, ("*",)),)
    """What quantities by group add up over: (the group's name, patterns of its parameters' names)."""

    def asks(self, quantity: str, parameter: str) -> bool:
        """Whether the quantity is for this parameter: one by group, for those in some group."""
        found = dict(self.patterns).get(quantity)
        if QUANTITIES[quantity].of_groups and self.group_of(parameter) is None:
            return False
        return found is None or fits(parameter, found)

    def group_of(self, parameter: str) -> str | None:
        """The group that a parameter is in, if it is in one."""
        return next((name for name, patterns in self.groups if fits(parameter, patterns)), None)

    def of(self, names: Collection[str]) -> Chosen:
        """The same of a model whose parameters have these names: one among the patterns means that parameter alone."""
        def exactly(given: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
            return tuple((name, exact(patterns, names)) for name, patterns in given)

        return Chosen(exactly(self.patterns), exactly(self.groups))

    def notes(self) -> list[str]:
        """What the head of the file, and `explain`, say about it."""
        return [f"{name} is for parameters {', '.join(patterns)}." for name, patterns in self.patterns]


class Closings(frozenset[Closing]):
    """All closings of a program; `of` says which of them one parameter has."""

    def __new__(cls, names: tuple[str, ...], chosen: Chosen, kept: Callable[[frozenset[Closing]], frozenset[Closing]],
                apart: bool = False) -> Closings:
        made = super().__new__(cls, kept(closings_for(names, apart)))
        made.names, made.chosen, made.kept, made.apart, made.known = names, chosen, kept, apart, {}
        return made

    names: tuple[str, ...]
    chosen: Chosen
    kept: Callable[[frozenset[Closing]], frozenset[Closing]]
    apart: bool
    """Whether parts of residuals have a stream of their own."""
    known: dict[str, frozenset[Closing]]
    """What `of` has found, by parameter: hundreds of patterns may have to be looked at."""

    def of(self, parameter: str) -> frozenset[Closing]:
        """Those that the quantities chosen for this parameter need."""
        if parameter not in self.known:
            asked = tuple(name for name in self.names if self.chosen.asks(name, parameter))
            self.known[parameter] = self.kept(closings_for(asked, self.apart))
        return self.known[parameter]

    def with_parts_apart(self) -> Closings:
        """The same where a residual's parts are wanted beside what sums its columns, with the parts in a stream of
        their own."""
        found = Closings(self.names, self.chosen, self.kept, apart=True)
        streams = {closing.stream for closing in found}
        return found if {RESIDUAL, RESIDUAL_PARTS} <= streams else self


def closings_of(closings: Collection[Closing], parameter: str) -> Collection[Closing]:
    """Those of one parameter, where they differ from parameter to parameter."""
    return closings.of(parameter) if isinstance(closings, Closings) else closings
