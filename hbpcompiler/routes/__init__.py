"""Routes: the ways to close a parameter's einsum, each with its cost; the planner takes the cheapest cover.

A route is a plain torch function over the letters of a contraction ("nkpo,npi->nkoi"), traced like a rule. It knows
neither operations nor quantities: it sees letters, sizes and which closings are asked for (see `quantities`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hbpcompiler.cost import TYPICAL_BATCH, Cost
from hbpcompiler.routes.closed import DiagonalForm, MatrixForm
from hbpcompiler.routes.factors import ColumnFactor, InputFactor, ReducedFactor, ReducedInputFactor
from hbpcompiler.routes.gram import GramDiagonal, GramNorm
from hbpcompiler.routes.products import ChunkedProduct, ClosedForm, NativeSum, OneProduct, WholeProduct
from hbpcompiler.routes.site import COLUMNS, DIAGONAL_FORM, MATRIX, NOTHING, Route, Site, Use

ROUTES: tuple[Route, ...] = (
    NativeSum(), OneProduct(), ClosedForm(), GramNorm(), GramDiagonal(), ChunkedProduct(), WholeProduct(),
    ColumnFactor(), InputFactor(), ReducedFactor(), ReducedInputFactor(), DiagonalForm(), MatrixForm(),
)


@dataclass(frozen=True)
class Choice:
    """A route and the closings it was chosen for."""

    route: Route
    kinds: frozenset[str]
    cost: Cost


def choose(site: Site, kinds: frozenset[str]) -> tuple[Choice, ...]:
    """The cheapest set of routes that gives all closings: a product made for one closing serves the others."""
    applicable = [route for route in ROUTES if route.applies(site) and route.kinds & kinds]
    best: tuple[float, tuple[Choice, ...]] | None = None
    for count in range(1, min(3, len(applicable)) + 1):
        for routes in itertools.combinations(applicable, count):
            left, choices = set(kinds), []
            for route in routes:
                taken = frozenset(left & route.kinds)
                left -= taken
                if taken:
                    choices.append(Choice(route, taken, route.cost(site, taken)))
            if left or len(choices) < count:
                continue
            seconds = sum(choice.cost.seconds(site.samples or TYPICAL_BATCH) for choice in choices)
            if best is None or seconds < best[0]:
                best = seconds, tuple(choices)
    assert best is not None, f"no route closes {sorted(kinds)} of {site}"
    return best[1]


__all__ = ["COLUMNS", "DIAGONAL_FORM", "MATRIX", "NOTHING", "ROUTES", "Choice", "Route", "Site", "Use", "choose"]
